"""One access tried on an MMU, on every MMU that can be reached."""
