"""Weights on their way from learners to engines: their description, their checksums, the links they travel over."""
