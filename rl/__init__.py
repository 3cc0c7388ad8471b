"""Algorithm, policy and training loop of dynframe-rl."""
