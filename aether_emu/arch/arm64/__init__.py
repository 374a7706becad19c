"""ARM64 (AArch64) paging as the Arm Architecture Reference Manual describes it."""
