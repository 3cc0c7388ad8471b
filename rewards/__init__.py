"""Scores of trajectories, and how rewards are named in a configuration."""
