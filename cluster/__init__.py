"""Starting and submitting to a cluster."""
