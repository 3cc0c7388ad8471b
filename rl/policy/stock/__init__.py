"""Checkpoints as the hub ships them: published files, vocabulary, and random ones at real widths."""
