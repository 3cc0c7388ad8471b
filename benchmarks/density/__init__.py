"""How densely does a trained policy look, and what does that cost? `python -m benchmarks.density` measures it."""
