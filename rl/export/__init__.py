"""Policies taken away: a folder that others load without this package, and a model card."""
