"""vLLM: token ids in, token ids and log-probs out; its settings, its drivers, its weights."""
