"""Sockets, which connect processes of this machine with each other and with nobody else."""
