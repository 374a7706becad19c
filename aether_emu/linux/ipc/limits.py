"""Limits of POSIX message queues, as Linux has them (include/linux/ipc_namespace.h)."""

MSG_DEFAULT = MSG_MAX = 10
"""Messages in a queue: of one that is made without attributes, and at most."""
MSGSIZE_DEFAULT = MSGSIZE_MAX = 8192
"""Bytes of a message, likewise."""
QUEUES_MAX = 256
HARD_MSG_MAX, HARD_MSGSIZE_MAX = 65536, 16 << 20
"""What holds for CAP_SYS_RESOURCE instead."""
