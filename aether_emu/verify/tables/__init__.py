"""Other people's page tables, read from memory images."""
