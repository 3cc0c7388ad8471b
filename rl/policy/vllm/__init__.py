"""FlexiVideo inside vLLM: inputs, the families' models, their weights in place."""
