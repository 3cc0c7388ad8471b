"""What a run says in the terminal: stages as they begin and end, a line per step."""
