"""What processes share by keys and numbers (System V): memory, semaphores, queues of messages."""
