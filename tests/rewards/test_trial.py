"""A stranger's reward is tried before a run starts, in a process that it may end: each fault is named with its term."""

import os
import time

import psutil
import pytest

from rewards import trial
from rewards.trial import DeclaredReward, try_rewards

MINE = """
import decimal, fractions, functools, math, os, signal, sys, threading, time
import numpy as np

def steady(task, trajectory): return 0.5
def _k(task, trajectory, k): return float(k)
bound = functools.partial(_k, k=0.25)
class Judge:
    def __init__(self, value): self.value = value
    def __call__(self, task, trajectory): return self.value
    def method(self, task, trajectory): return self.value
    @classmethod
    def of_class(cls, task, trajectory): return 0.75
    @staticmethod
    def static(task, trajectory): return 0.125
    class Inner:
        deep = staticmethod(lambda task, trajectory: 0.0625)
instance, method = Judge(0.3), Judge(0.4).method
anonymous = lambda task, trajectory, **anything: 0.2
starred = lambda *args, limit=1.0: limit
largest = np.maximum

def exits(task, trajectory): sys.exit(3)
def exits_quietly(task, trajectory): sys.exit()
def interrupts(task, trajectory): raise KeyboardInterrupt
def odd(task, trajectory): raise BaseException("odd")
def recursive(task, trajectory): return recursive(task, trajectory)
def asks(task, trajectory): return float(input("how good? "))
def wanders(task, trajectory): os.chdir("/"); sys.argv = []; os.environ.clear(); return 1.0
def leaves_a_thread(task, trajectory): threading.Thread(target=time.sleep, args=(3600,)).start(); return 1.0
def leaves_a_process(task, trajectory): import subprocess; subprocess.Popen(["sleep", "3600"]); return 1.0
def prints(task, trajectory): print("printed by a reward"); return 1.0
class Mute(Exception):
    def __str__(self): raise SystemExit
def mute(task, trajectory): raise Mute
class Unreal:
    def __float__(self): raise SystemExit(4)
def unreal(task, trajectory): return Unreal()
async def awaited(task, trajectory): return 0.6
def together(tasks, trajectories): return [0.7] * len(tasks)
async def told(tasks, trajectories): return [{"score": 0.8, "seconds": 1}] * len(tasks)
async def leaves(task, trajectory): sys.exit(7)
def too_few(tasks, trajectories): return [1.0]
async def _later(): return 1.0
def later(task, trajectory): return _later()
"""
WORKS = {
    "steady": 0.5,
    "bound": 0.25,
    "instance": 0.3,
    "method": 0.4,
    "Judge.of_class": 0.75,
    "Judge.static": 0.125,
    "Judge.Inner.deep": 0.0625,
    "anonymous": 0.2,
    "starred": 1.0,
    "wanders": 1.0,
    "leaves_a_thread": 1.0,
    "leaves_a_process": 1.0,
    "prints": 1.0,
    "awaited": 0.6,
    "together": 0.7,
    "told": 0.8,
}
FAILS = {
    "exits": "raised SystemExit: 3 on task golden/letter at FILE:23 in exits",
    "exits_quietly": "raised SystemExit: ",
    "interrupts": "raised KeyboardInterrupt: ",
    "odd": "raised BaseException: odd",
    "recursive": "raised RecursionError: maximum recursion depth exceeded",
    "asks": "raised EOFError: EOF when reading a line",
    "mute": "raised Mute: (its message cannot be shown: SystemExit)",
    "unreal": "raised SystemExit: 4",
    "later": "gave no number: returned coroutine: <coroutine",
    "largest": "raised ",
    "leaves": "raised SystemExit: 7",
    "too_few": "gave no number: returned 1 values for 4 calls or trajectories",
}


@pytest.fixture
def write(tmp_path):
    def to(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return to


def tried(terms, timeout_s=20.0, memory_mib=0):
    declared = {name: DeclaredReward(fn, "reasoning", {}) for name, fn in terms.items()}
    return try_rewards(declared, calls="mean", timeout_s=timeout_s, memory_mib=memory_mib)


def test_rewards_of_every_kind_are_called_and_each_fault_is_named(write, capfd):
    path = write("mine.py", MINE)
    found = tried({name: f"{path}:{name}" for name in (*WORKS, *FAILS)})
    assert {name: set(trial.values["letter"]) for name, trial in found.items() if not trial.problem} == {
        name: {value} for name, value in WORKS.items()
    }
    for name, problem in FAILS.items():
        told = found[name].problem
        assert told.startswith(f"reward {name!r} ") and problem.replace("FILE", str(path)) in told, told
        assert "\n" not in told and ("at " + str(path) in told or name == "largest")
    printed = capfd.readouterr()
    assert printed.out == "" and "printed by a reward" in printed.err


DEADLY = {
    "os._exit(0)": "exit code 0; os._exit?",
    "ctypes.string_at(0)": "by SIGSEGV",
}


def test_a_reward_that_ends_its_process_is_named_and_costs_no_other(write):
    steady = write("steady.py", "def f(task, trajectory): return 1.0")
    terms, expected = {"before": f"{steady}:f"}, {"before": ""}
    for place, (body, ending) in enumerate(DEADLY.items()):
        text = f"import ctypes, os, signal\ndef f(task, trajectory):\n    {body}\n"
        path = write(f"deadly{place}.py", text)
        terms[body] = f"{path}:f"
        expected[body] = f"reward '{path}:f' has ended its process while it was called ({ending})"
    loaded = write("loaded.py", "import os\nos._exit(0)\n")
    terms |= {"loaded": f"{loaded}:f", "after": f"{steady}:f"}
    expected["loaded"] = f"reward '{loaded}:f' has ended its process while it was loaded (exit code 0; os._exit?)"
    expected["after"] = ""
    assert {name: one.problem for name, one in tried(terms).items()} == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("time.sleep(60)", "reward 'mine.py:f': cannot load FILE: TimeoutError: no result within 0.2 s"),
        ("def f(task, trajectory):\n    time.sleep(60)", "'hangs' timed out: no result within 0.2 s"),
        (
            "def f(*_):\n    while True:\n        try: time.sleep(60)\n        except Exception: pass",
            "its process was killed",
        ),
        (
            "signal.pthread_sigmask(signal.SIG_BLOCK, {14})\ntime.sleep(60)",
            "while it was loaded, and no reaction to the",
        ),
    ],
)
def test_a_reward_that_hangs_is_named_within_its_deadline_also_where_it_ignores_it(text, problem, write, monkeypatch):
    monkeypatch.setattr(trial, "GRACE_S", 0.3)
    path = write("mine.py", f"import signal, time\n{text}\n")
    monkeypatch.chdir(path.parent)
    steady = write("steady.py", "def f(task, trajectory): return 1.0")
    started = time.monotonic()
    found = tried({"hangs": "mine.py:f", "steady": f"{steady}:f"}, timeout_s=0.2)
    assert problem.replace("FILE", str(path)) in found["hangs"].problem and not found["steady"].problem
    assert time.monotonic() - started < 30


def test_more_memory_than_a_reward_may_take_is_named_with_the_key(write):
    path = write("mine.py", "def f(task, trajectory): return float(len(bytearray(2**30)))")
    problem = tried({"greedy": f"{path}:f"}, memory_mib=128)["greedy"].problem
    assert "'greedy' ran out of memory: MemoryError" in problem and "scoring.memory_mib" in problem


def test_nothing_that_a_reward_has_started_is_left(write):
    name = f"left_{os.getpid()}"
    text = (
        f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', '{name}'])\n"
    )
    assert not tried({"mine": f"{write('mine.py', text + 'def f(*_): return 1.0')}:f"})["mine"].problem
    left = [process for process in psutil.process_iter(["cmdline"]) if name in (process.info["cmdline"] or ())]
    assert psutil.wait_procs(left, timeout=10)[1] == []
