"""The host's own CPU, by /dev/kvm."""
