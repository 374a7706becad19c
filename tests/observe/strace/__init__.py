"""Tests of the lines of --strace."""
