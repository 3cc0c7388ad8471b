"""How much memory a run will take: GPU, node and disk, in named bytes, from shapes and settings alone."""
