"""How work scales with CPUs under each scheme of locks: the sweep, its table, and its figure. Modelled."""
