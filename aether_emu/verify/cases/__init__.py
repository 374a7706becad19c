"""Cases put to a specification and to MMUs, and what they answer."""
