"""What must be there before a run starts: clips, tasks, traces, the policy; made once and cached."""
