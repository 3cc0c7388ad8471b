"""What a command prints, line by line: which lines are the project's own."""

import re

OWN = re.compile(
    r"\d\d:\d\d:\d\d "  # a line of a stage, a step, a warning
    r"|[\w.-]+/(rollout|reward|learner|cold-start)[\w/.-]*, process "  # the worker that the line before speaks of
    r"|  \| "  # the end of its log
    r"|error: |stopped by SIG"
    r"|\d+ steps in |(held-out|share of|frames) |best checkpoint: |faults recovered: |metrics, trajectories and "
    r"|( +\w+)+$|$"  # the head of a table
)


def strange_lines(text):
    """Those of a run's output that neither the project nor its user has written."""
    return [line for line in text.splitlines() if OWN.match(line) is None]
