"""Programs: ELF files, and the first stack of a process."""
