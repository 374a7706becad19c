"""What a program asks of the kernel, a line for each event, in the words of strace(1)."""
