"""The `aether` command."""
