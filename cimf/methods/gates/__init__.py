"""Hard-concrete gates under a constraint on the expected density."""
