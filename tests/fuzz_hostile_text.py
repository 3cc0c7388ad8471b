"""Coverage-guided fuzzing of one reader of hostile text (tests/hostile_text.py): atheris takes over the process.

    python -m tests.fuzz_hostile_text TARGET [libFuzzer options, such as -runs=100000 -seed=1]

Ends with exit code 0 after its runs; a text that breaks a reader ends it at once, with the traceback and the input.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["envs", "rewards", "rl.trajectory", "rl.tracking.records", "rl.report"]):
    from tests.hostile_text import ODD, TARGETS, WORDS, Clip

GIVEN = [0.0, 1e-9, 0.009, 0.01, 0.1, 1.0, 7.3, 60.0, 86_400.0, 1e12, -1.0, float("nan"), float("inf")]
NUMBERS = 40  # bytes that say what the clip is; the text follows
MORE_MIB = 1024  # memory an input may take before libFuzzer calls it a leak
SEEDS = (
    "<think>I look. <span>56.47 - 59.47</span><fps>3</fps>",
    "<think>T<span>3.0 - 6.0</span> <fps>4</fps><video>U</think><answer>(B) red</answer><|im_end|>",
    "from 3 to 8.5 seconds",
    "Which?\n(A) a cat\n(B) the dog\nC. none",
)


def clip_of(numbers: atheris.FuzzedDataProvider) -> Clip:
    """A clip of any length and rate, the absurd included, under rules of any run."""
    return Clip(
        duration_s=numbers.PickValueInList(GIVEN) if numbers.ConsumeBool() else numbers.ConsumeFloat(),
        native_fps=numbers.PickValueInList(GIVEN) if numbers.ConsumeBool() else numbers.ConsumeFloat(),
        max_fps=numbers.ConsumeFloatInRange(1e-3, 1e6),
        min_window_s=numbers.ConsumeFloatInRange(0.0, 10.0),
        max_frames=numbers.ConsumeIntInRange(1, 200),
        room=numbers.ConsumeIntInRange(-1, 100) if numbers.ConsumeBool() else None,
        floor=numbers.ConsumeFloatInRange(0.0, 1.0),
    )


def main() -> None:
    """Fuzz one target; libFuzzer's options follow its name."""
    name, *options = sys.argv[1:]
    target = TARGETS[name]

    def try_one(data: bytes) -> None:
        numbers, text = atheris.FuzzedDataProvider(data[:NUMBERS]), data[NUMBERS:]
        target(text.decode("utf-8", errors="surrogateescape"), clip_of(numbers))

    with tempfile.TemporaryDirectory() as folder:
        words, seeds = Path(folder) / "words.dict", Path(folder) / "seeds"
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in (*WORDS, *ODD)))
        seeds.mkdir()
        for number, text in enumerate(SEEDS):
            (seeds / str(number)).write_bytes(bytes(NUMBERS) + text.encode("utf-8"))
        limit = f"-rss_limit_mb={_peak_mib() + MORE_MIB}"
        given = [f"-dict={words}", "-max_len=512", "-len_control=0", "-print_final_stats=1", limit, *options]
        given.append(str(seeds))
        atheris.Setup(["fuzz", *given], try_one)
        atheris.Fuzz()


def _peak_mib() -> int:
    """The peak libFuzzer's limit is held against: Linux keeps a parent's across fork and exec, however large it was."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _escaped(word: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word.encode("utf-8", errors="surrogatepass"))


if __name__ == "__main__":
    main()
