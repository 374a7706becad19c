"""The Linux personality: what the guest programs take for a kernel."""
