"""x86_64 paging as the Intel SDM and the AMD APM describe it."""
