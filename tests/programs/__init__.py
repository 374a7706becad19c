"""Whole programs, as their makers ship them, print here exactly what they print on the host."""
