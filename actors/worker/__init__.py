"""The process behind every worker: its name, log, memory and stalls, and waiting for what it answers."""
