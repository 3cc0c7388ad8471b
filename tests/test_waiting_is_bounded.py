"""No wait for another process is without a deadline (docs/faults.md lists the waits and their deadlines)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for room in ("rl", "actors", "cluster") for path in (ROOT / room).rglob("*.py"))
REMOTE = {"ray.get", "ray.wait"}  # and `.result()` of futures, `.wait()` and `.communicate()` of processes
OWN_THREADS = {  # waits inside one process, for a thread or a task that cannot outlive it
    "actors/engine/driver.py": "a future that `wait(..., timeout)` has found done",
    "actors/engine/engine.py": "a future whose callback this is",
    "actors/engine/weights.py": "a thread that adds up the bucket before",
    "actors/weight_packing.py": "a thread that adds up what is being packed",
    "rl/learner/prefetch.py": "the thread that makes the next micro-batch",
    "rl/weight_transfer/broadcast.py": "a broadcast that is known to be done",
    "rl/weight_transfer/watch.py": "a thread that ends with the transfer it looks at",
    "rl/checkpoint/saver.py": "a future that is known to be done",
    "rl/run/prepare/clips.py": "decoding threads, whose requests have deadlines of their own",
}


def waits(path):
    """(line, call, has a deadline) of every call that waits."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called = ast.unparse(node.func)
        bounded = any(keyword.arg in ("timeout", "timeout_s") for keyword in node.keywords)
        if called in REMOTE:
            yield node.lineno, called, bounded
        elif node.func.attr in ("result", "communicate", "wait", "join") and not isinstance(
            node.func.value, ast.Constant
        ):
            joins_text = node.func.attr == "join" and len(node.args) == 1
            yield node.lineno, called, bounded or bool(node.args) or joins_text


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_wait_for_another_process_has_a_deadline(path):
    name = str(path.relative_to(ROOT))
    unbounded = [f"{name}:{line}: {call}" for line, call, bounded in waits(path) if not bounded]
    remote = [place for place in unbounded if place.rsplit(" ", 1)[1] in REMOTE]
    assert remote == []
    assert unbounded == [] or name in OWN_THREADS, unbounded


def test_the_exceptions_are_still_needed():
    for name in OWN_THREADS:
        assert any(not bounded for _, _, bounded in waits(ROOT / name)), f"{name} has no unbounded wait any more"


def test_the_check_finds_waits_without_a_deadline(tmp_path):
    (tmp_path / "unbounded.py").write_text("ray.get(call)\nray.wait(calls)\nfuture.result()\nprocess.communicate()\n")
    (tmp_path / "bounded.py").write_text("ray.get(call, timeout=3)\nfuture.result(4)\n', '.join(names)\n")
    assert [bounded for *_, bounded in waits(tmp_path / "unbounded.py")] == [False] * 4
    assert all(bounded for *_, bounded in waits(tmp_path / "bounded.py"))
