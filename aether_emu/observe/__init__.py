"""Tools that look at a machine without changing what it does."""
