"""Benchmarks rolled out, scored and compared; parity of engine and learner."""
