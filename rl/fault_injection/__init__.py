"""Whole runs started, struck by faults, and compared: `dynframe chaos` and `dynframe verify-resume`."""
