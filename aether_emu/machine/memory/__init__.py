"""Guest-physical memory on the host: RAM, the file aperture, and the guard against lost file pages."""
