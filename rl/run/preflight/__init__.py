"""What is checked before anything heavy starts: data, policy, rewards, memory, disk, GPUs, token budget."""
