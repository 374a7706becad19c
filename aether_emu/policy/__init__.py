"""Layer 3: decisions that the memory manager asks for, each replaceable."""
