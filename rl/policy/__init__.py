"""FlexiVideo: one encoder, used by the engine and by the learner."""
