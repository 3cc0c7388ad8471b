"""Tools of the policy: what it may ask for in the middle of its answer."""
