"""CPUs whose engine is Unicorn, and what keeps their translated code fresh."""
