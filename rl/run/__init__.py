"""The composition root: preflight checks, preparing data and policy, spawning workers, a run, resuming it."""
