"""Rows, formats, datasets, supervised traces and the status of clips."""
