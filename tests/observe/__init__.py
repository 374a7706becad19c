"""Looking at a machine."""
