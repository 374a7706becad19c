"""The guest's file system: host files inside the grants, synthetic nodes, and descriptors."""
