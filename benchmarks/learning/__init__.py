"""Does it learn, and is it the decoupling of segments that helps? `python -m benchmarks.learning` runs the proof."""
