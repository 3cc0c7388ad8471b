"""A profile holds what every thread of the process computed while it ran, and loads as Chrome's JSON."""

import gzip
import json
import threading

import torch
from torch.profiler import record_function

from rl.policy.profiler import Profiler


def work(name):
    with record_function(name):
        torch.ones(8, 8) @ torch.ones(8, 8)


def in_thread(action, *arguments):
    thread = threading.Thread(target=action, args=arguments)
    thread.start()
    thread.join()


def names_in(path):
    return {event.get("name") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]}


def test_what_all_threads_did_in_its_time_and_nothing_else(tmp_path):
    work("before")
    profiler = Profiler()
    work("here")
    in_thread(work, "in another thread")
    path = tmp_path / "profiles" / "step_3" / "learner_0.json.gz"
    in_thread(profiler.write, path)
    work("after")
    assert {"here", "in another thread", "aten::mm"} <= names_in(path)
    assert not names_in(path) & {"before", "after"}
    assert list(path.parent.iterdir()) == [path]


def test_one_can_follow_another(tmp_path):
    for step in (1, 2):
        profiler = Profiler()
        work(f"step {step}")
        profiler.write(tmp_path / f"{step}.json.gz")
    assert "step 2" in names_in(tmp_path / "2.json.gz") and "step 1" not in names_in(tmp_path / "2.json.gz")
