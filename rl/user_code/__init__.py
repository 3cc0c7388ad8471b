"""Python that users wrote and a configuration names: rewards, formats, benchmarks."""
