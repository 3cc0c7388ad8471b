"""Objects of a user's code are found by "module:name" or "path/file.py:name"; every mistake is one clear line."""

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from rl.user_code.errors import UserCodeError
from rl.user_code.loading import load_object
from rl.user_code.reference import absolute, parse_reference, taken_from


@pytest.fixture
def write(tmp_path):
    """A file below a folder of its own; its path."""

    def to(name, text, folder="mine"):
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return to


def load(path, name="f"):
    return load_object("reward 'mine'", parse_reference(f"{path}:{name}"))


def refusal(path, name="f"):
    with pytest.raises(UserCodeError) as caught:
        load(path, name)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("reward 'mine': ")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("a.py:f", ("a.py", "f")),
        ("a/b.c/d.py:f.g", ("a/b.c/d.py", "f.g")),
        ("package.module:f", ("package.module", "f")),
        (r"C:\rewards\a.py:f", (r"C:\rewards\a.py", "f")),
        ("answer", None),
        ("a.py", None),
        (":f", None),
        ("a.py:", None),
        ("", None),
    ],
)
def test_a_reference_is_a_source_and_a_name(text, reference):
    found = parse_reference(text)
    assert (found and (found.source, found.name)) == reference


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("r.py:f", "configs/r.py:f"),  # below the working directory: relative to it
        ("./r.py:f", "configs/r.py:f"),
        ("../r.py:f", "r.py:f"),
        ("../../r.py:f", "FOLDER/r.py:f"),
        ("/r.py:f", "/r.py:f"),
        ("~/r.py:f", "HOME/r.py:f"),
        ("answer", "answer"),
        ("package.module:f", "package.module:f"),
        ("", ""),
    ],
)
def test_a_relative_path_is_taken_from_the_folder_of_the_file_that_names_it(text, taken, tmp_path, monkeypatch):
    (tmp_path / "project" / "configs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert taken_from(text, Path("configs")) == taken.replace("FOLDER", str(tmp_path)).replace("HOME", "/home/somebody")
    assert absolute("r.py:f") == f"{tmp_path}/project/r.py:f" and absolute("answer") == "answer"


# Neighbours ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "import helper\ndef f(): return helper.VALUE",
        "from helper import VALUE\ndef f(): return VALUE",
        "from helper import *\ndef f(): return VALUE",
        "import helper as h\nf = lambda: h.VALUE",
        "def f():\n    import helper\n    return helper.VALUE",
        "class Mine:\n    def __call__(self):\n        from helper import VALUE\n        return VALUE\nf = Mine()",
        "from . import helper\ndef f(): return helper.VALUE",
        "from .helper import VALUE\ndef f(): return VALUE",
        "import package.inner\ndef f(): return package.inner.VALUE",
        "import package.inner as inner\ndef f(): return inner.VALUE",
        "from package import inner\ndef f(): return inner.VALUE",
        "from package import VALUE\ndef f(): return VALUE",
        "import folder.inner\ndef f(): return folder.inner.VALUE",  # without an __init__.py
        "import second\ndef f(): return second.VALUE",  # which imports helper
        "import circular\ndef f(): return circular.value()",  # which imports this file
    ],
)
def test_a_file_imports_those_beside_it_now_and_later(text, write, tmp_path):
    for folder, value in (("one", 1), ("two", 2)):  # of the same names: kept apart
        write("helper.py", f"VALUE = {value}", folder)
        write("second.py", "from helper import VALUE", folder)
        write("circular.py", "import mine\ndef value():\n    from helper import VALUE\n    return VALUE", folder)
        write("package/__init__.py", "from helper import VALUE", folder)
        write("package/inner.py", f"VALUE = {value}", folder)
        write("folder/inner.py", f"VALUE = {value}", folder)
        write("mine.py", text, folder)
    path, modules = list(sys.path), {name for name in sys.modules if not name.startswith("user_code_")}
    one, two = load(tmp_path / "one" / "mine.py"), load(tmp_path / "two" / "mine.py")
    assert (one(), two(), one()) == (1, 2, 1)
    assert sys.path == path and {"helper", "second", "package", "folder"}.isdisjoint(sys.modules)
    assert {name for name in sys.modules if not name.startswith("user_code_")} == modules
    assert not list(tmp_path.rglob("__pycache__"))


def test_no_neighbour_hides_the_standard_library_or_this_project(write):
    for name in ("json", "random", "rl", "rewards"):
        write(f"{name}.py", "raise RuntimeError('a neighbour was imported')")
    text = "import json, random\nfrom rl.trajectory import AnswerKind\nimport rewards.answer\nf = json.loads"
    assert load(write("mine.py", text))("[1]") == [1]
    message = refusal(write("other.py", "from rewards import of_mine\nf = of_mine"))
    assert "rewards.py is hidden by a module of the same name that comes first: rename it" in message
    assert "json.py is hidden" in refusal(write("third.py", "import json\nf = json.of_mine"))


def test_a_neighbour_comes_before_an_installed_package_and_a_folder_of_data_does_not(write):
    write("rich.py", "VALUE = 3")
    write("yaml/data.txt", "no code")
    assert load(write("mine.py", "import rich, yaml\nyaml.safe_load\ndef f(): return rich.VALUE"))() == 3


def test_two_objects_of_a_file_share_its_module_and_classes_find_it(write):
    text = (
        "import dataclasses\n@dataclasses.dataclass\nclass Two:\n    x: int = 2\nLOADED = []\ndef f(): return LOADED\n"
    )
    path = write("my-rewards v1.2.py", text)
    assert load(path) is load(path) and load(path, "LOADED") is load(path)()
    assert load(path, "Two.x") == 2 and load(path, "Two")().x == 2


# What is wrong with a file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys\nsys.exit(3)", "SystemExit: 3 at FILE:2; it ends the process while it is imported"),
        ("raise SystemExit", "SystemExit at FILE:1; it ends"),
        ("quit()", "SystemExit: None at FILE:1; it ends"),
        (
            "import argparse\np = argparse.ArgumentParser()\np.parse_args(['--x'])",
            "SystemExit: 2 at FILE:3; it ends the",
        ),
        ("import argparse\np = argparse.ArgumentParser()\np.add_argument('x')\np.parse_args()", "SystemExit: 2"),
        ("raise KeyboardInterrupt('mine')", "KeyboardInterrupt: mine at FILE:1"),
        ("raise GeneratorExit", "GeneratorExit at FILE:1"),
        ("class Odd(BaseException): pass\nraise Odd('two\\nlines')", "Odd: two lines at FILE:2"),
        (
            "class M(Exception):\n  def __str__(self): raise SystemExit\nraise M",
            "its message cannot be shown: SystemExit",
        ),
        ("def f(:", "SyntaxError: invalid syntax (mine.py, line 1)"),
        ("if 1:\nf = 1", "IndentationError: expected an indented block"),
        (b"f = '\xe9'", "SyntaxError: (unicode error) 'utf-8' codec can't decode"),
        (b"f = 1\0", "null bytes"),
        (
            "x = 1\nimport nowhere_at_all",
            "No module named 'nowhere_at_all' at FILE:2; it is neither installed here nor",
        ),
        ("def g(): return g()\ng()", "RecursionError: maximum recursion depth exceeded at FILE:1"),
        ("def brief(): pass\nbriefly = 1", "no object 'f' in FILE; there are brief, briefly"),
        ("", "no object 'f' in FILE; nothing is defined there"),
        ("def __getattr__(name): raise RuntimeError('no')", "cannot read 'f' of FILE: RuntimeError: no at FILE:1"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_named_with_the_line_and_a_remedy(text, message, write):
    path = write("mine.py", text)
    assert message.replace("FILE", str(path)) in refusal(path)


def test_a_byte_order_mark_and_declared_encodings_are_read(write):
    assert load(write("bom.py", b"\xef\xbb\xbff = '\xc3\xa9'")) == "é"
    assert load(write("latin.py", b"# coding: latin-1\nf = '\xe9'")) == "é"


def test_a_file_that_is_mended_is_loaded_anew(write):
    write("helper.py", "f = 1 / 0")
    path = write("mine.py", "import helper\nf = 1")
    assert f"ZeroDivisionError: division by zero at {path.with_name('helper.py')}:1" in refusal(path)
    write("helper.py", "f = 1 / 1")
    assert load(write("mine.py", "import helper\nf = 2")) == 2


def test_what_is_not_there_or_no_file_is_said(write, tmp_path, monkeypatch):
    path = write("my_rewards.py", "def brevity(): pass")
    (tmp_path / "mine" / "folder.py").mkdir()
    os.mkfifo(tmp_path / "mine" / "pipe.py")
    (tmp_path / "mine" / "loop.py").symlink_to("loop.py")
    assert "; did you mean 'my_rewards.py'?" in refusal(path.with_name("my_reward.py"))
    assert "; did you mean 'brevity'?" in refusal(path, "brevty")
    assert "folder.py is a folder; name a file" in refusal(path.with_name("folder.py"))
    assert "pipe.py is not a regular file" in refusal(path.with_name("pipe.py"))
    assert "no path of a file" in refusal(path.with_name("loop.py"))
    assert "no path of a file" in refusal("~nobody_at_all/mine.py")
    assert "no path of a file" in refusal(f"{'x' * 300}.py")
    assert "write / for \\, as rewards/my_rewards.py" in refusal("rewards\\my_rewards.py")
    monkeypatch.chdir(tmp_path / "mine")
    assert load("my_rewards.py", "brevity")() is None
    assert "there is a file, which is named as 'my_rewards.py:brevity'" in refusal("my_rewards", "brevity")
    assert "is it installed, or reachable through PYTHONPATH?" in refusal("no_such_module")


def test_a_module_with_the_name_of_a_package_of_ours_is_named_by_its_file(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("rewards.py", "def brevity(): pass", folder=".")
    advice = "'rewards' is a package of dynframe-rl, which comes first: name a file of yours as '{}', or rename it"
    assert advice.format("rewards.py:brevity") in refusal("rewards", "brevity")
    assert advice.format("rewards/mine.py:brevity") in refusal("rewards.mine", "brevity")
    assert load("rewards.py", "brevity")() is None
    assert "No module named 'rl.nothing'" in refusal("rl.nothing")
    assert "did you mean 'sqrt'?" in refusal("math", "sqt")


# What a file does while it is loaded ---------------------------------------------------------------------------------


def test_the_process_is_afterwards_as_it_was(write, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dynframe", "check", "run.yaml"])
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM), sys.stdout
    text = (
        "import argparse, os, signal, sys\nseen = list(sys.argv), argparse.ArgumentParser().parse_args()\n"
        "os.chdir('/')\nsys.argv = []\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGALRM, signal.SIG_IGN)\nprint('loaded')\ndef f(): return seen[0]\n"
    )
    path = write("mine.py", text)
    assert load(path)() == [str(path)]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM), sys.stdout) == before
    assert Path.cwd() == tmp_path and sys.argv == ["dynframe", "check", "run.yaml"]
    assert capsys.readouterr() == ("", "loaded\n")


def interrupt(_signum, _frame):
    raise KeyboardInterrupt


@pytest.mark.parametrize("handler", [interrupt, signal.default_int_handler])
def test_a_real_ctrl_c_ends_the_command_and_one_that_a_file_raises_does_not(handler, write):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            load(
                write("mine.py", "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nfor _ in range(10**6): pass")
            )
        assert "KeyboardInterrupt at" in refusal(write("own.py", "raise KeyboardInterrupt"))
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_loads_in_a_thread_too(write):
    found = []
    thread = threading.Thread(target=lambda: found.append(load(write("mine.py", "def f(): return 1"))()))
    thread.start()
    thread.join()
    assert found == [1]
