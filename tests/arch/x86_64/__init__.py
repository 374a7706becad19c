"""Tests of x86_64's formats, registers and error codes against the Intel SDM."""
