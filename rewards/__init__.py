"""Verdicts on trajectories, and how they are named in a configuration."""
