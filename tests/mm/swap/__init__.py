"""Tests of swap and reclaim."""
