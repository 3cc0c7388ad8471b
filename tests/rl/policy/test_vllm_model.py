"""vLLM's side of the policy: where videos stand in a prompt, and how the plugin makes itself known."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.vllm

START, END, PAD, WORD = 1, 2, 3, 9


@pytest.fixture(scope="module")
def video_blocks():
    from rl.policy import vllm_plugin

    vllm_plugin.register()
    from rl.policy.vllm_inputs import video_blocks

    return lambda token_ids, expected: video_blocks(token_ids, expected, START, PAD)


def test_block_reaches_from_its_start_to_its_last_placeholder_times_between_scenes_included(video_blocks):
    prompt = [WORD, START, WORD, PAD, PAD, WORD, PAD, PAD, END, WORD, START, PAD, END]

    first, second = video_blocks(prompt, [4, 1])

    assert first[:2] == (1, 8)
    assert first[2].tolist() == [False, False, True, True, False, True, True]
    assert second[:2] == (10, 12)
    assert second[2].tolist() == [False, True]


def test_prompt_without_videos_has_no_blocks(video_blocks):
    assert video_blocks([WORD, WORD], []) == []


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ([START, PAD, END], [2]),  # not expanded
        ([START, PAD, PAD, PAD, END], [2]),  # expanded twice
        ([START, PAD, END], []),  # video missing
        ([START, PAD, END], [1, 1]),  # video too many
        ([WORD], [1]),
        ([PAD, START, PAD, END], [1]),  # a placeholder outside any block
        ([START, PAD, END, START, PAD, PAD, END], [2, 1]),  # videos in the wrong order
        ([START, END], [0, 0]),
    ],
)
def test_prompt_whose_placeholders_are_not_its_videos_is_refused_with_both_counts(video_blocks, prompt, expected):
    with pytest.raises(ValueError, match="placeholders already expanded"):
        video_blocks(prompt, expected)


def test_plugin_is_installed_and_cheap_to_import():
    from importlib.metadata import entry_points

    (found,) = (point for point in entry_points(group="vllm.general_plugins") if point.name == "dynframe")
    script = (
        "import sys, rl.policy.vllm_plugin; sys.exit(any(m in sys.modules for m in ('torch', 'vllm', 'transformers')))"
    )

    assert found.value == "rl.policy.vllm_plugin:register"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_registering_twice_is_harmless():
    from vllm import ModelRegistry

    from rl.policy import vllm_plugin

    vllm_plugin.register()
    vllm_plugin.register()

    assert vllm_plugin.ARCHITECTURE in ModelRegistry.get_supported_archs()


PARENT = """
import multiprocessing, os, time
from rl.policy.vllm_plugin import end_with_parent

def engine(ready):
    end_with_parent()
    ready.send(os.getpid())
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=engine, args=(theirs,)).start()
    print(ours.recv(), flush=True)
    os.kill(os.getpid(), 9)
"""


def test_an_engine_process_ends_with_the_worker_that_started_it_however_that_dies(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    parent = subprocess.run([sys.executable, tmp_path / "parent.py"], env=environment, capture_output=True, text=True)
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    engine = int(parent.stdout)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(engine).wait(timeout=20)
    assert not psutil.pid_exists(engine)
