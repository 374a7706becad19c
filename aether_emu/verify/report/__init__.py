"""Outcomes as files: HTML and JUnit XML."""
