"""Ray itself: the connection, a session of the run's own, placement, numbers in its dashboard."""
