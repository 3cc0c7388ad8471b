"""Whole runs under injected faults, and resumed runs against uninterrupted ones: `chaos` and `verify-resume`."""
