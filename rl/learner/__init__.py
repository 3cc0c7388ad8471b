"""DeepSpeed: one learner rank, its state and partition, its settings and metrics, the supervised stage."""
