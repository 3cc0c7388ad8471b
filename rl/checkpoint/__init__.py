"""What a run is on disk: store, manifest, snapshot, saver, mirror and remote copy."""
