"""Decoding: files, indices, frames, the decoding processes and the frame cache."""
