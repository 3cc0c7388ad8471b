"""Every configuration key, by section, and the door to omegaconf."""
