"""What is known of a program that a fault or a signal of its own has ended, for people to read."""
