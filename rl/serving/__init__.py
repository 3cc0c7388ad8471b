"""Policies served by vLLM to others: the files they send, decoded as in training."""
