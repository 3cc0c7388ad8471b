"""What a run writes down: metrics with unit and meaning, sinks, records, faults, step fingerprints."""
