"""FlexiVideo's ablation as a learning result: the same policy fine-tuned with every way of cutting clips."""
