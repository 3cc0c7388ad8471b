"""Algorithm, policy and training loop of dynframe-rl."""

__version__ = "0.4.0"
