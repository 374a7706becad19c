"""Tests of what differs between the ISAs in Linux's interface."""
