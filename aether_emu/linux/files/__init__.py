"""What programs know as files: open files of every kind, descriptors, the tree of names they may reach."""
