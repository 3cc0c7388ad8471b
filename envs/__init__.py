"""Data sets, video decoding and the retrieval environment."""
