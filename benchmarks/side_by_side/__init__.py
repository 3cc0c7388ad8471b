"""A whole step, against version 0.3.0 and against TRL: `python -m benchmarks.side_by_side` measures it."""
