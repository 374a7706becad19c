"""Memory objects: what pages belong to, and where they are shown."""
