"""The quickstart's world: clips, tasks and traces made from a seed."""
