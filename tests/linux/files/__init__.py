"""Tests of the guest's file system."""
