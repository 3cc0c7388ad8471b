"""Segments, advantages, losses and batches: pure functions."""
