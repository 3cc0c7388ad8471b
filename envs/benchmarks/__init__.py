"""The field's benchmarks: one file each, its annotation files read into examples and its metric on one prediction."""
