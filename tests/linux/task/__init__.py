"""Tests of tasks, the scheduler and waiting."""
