"""Ray workers, each with the pool that drives it."""
