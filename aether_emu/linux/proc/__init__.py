"""What /proc tells of processes and the machine."""
