"""One writer per run: the lease in its folder, who holds it, and when it may be taken over."""
