"""Names of benchmarks -> benchmarks: a literal table, looked up late, refusing clearly."""

from __future__ import annotations

import difflib
import importlib

from envs.benchmarks.benchmark import Benchmark

BUILTIN = {
    "activitynet_mr": "envs.benchmarks.activitynet_mr:ACTIVITYNET_MR",
    "charades_sta": "envs.benchmarks.charades_sta:CHARADES_STA",
    "favor_bench": "envs.benchmarks.favor_bench:FAVOR_BENCH",
    "longvideobench": "envs.benchmarks.longvideobench:LONGVIDEOBENCH",
    "lvbench": "envs.benchmarks.lvbench:LVBENCH",
    "mlvu": "envs.benchmarks.mlvu:MLVU",
    "motionbench": "envs.benchmarks.motionbench:MOTIONBENCH",
    "nextgqa": "envs.benchmarks.nextgqa:NEXTGQA",
    "qvhighlights": "envs.benchmarks.qvhighlights:QVHIGHLIGHTS",
    "rextime": "envs.benchmarks.rextime:REXTIME",
    "video_mme": "envs.benchmarks.video_mme:VIDEO_MME",
}


class UnknownBenchmark(KeyError):
    """There is no such benchmark; the message says what there is."""

    def __str__(self) -> str:
        return self.args[0]  # a KeyError would show it in quotes


def resolve(name: str) -> Benchmark:
    """Find a benchmark by built-in name or "package.module:NAME".

    Raises:
        UnknownBenchmark: no such name, module or attribute, it cannot be imported, or it is no Benchmark.
    """
    module_name, colon, attribute = BUILTIN.get(name, name).partition(":")
    if not (colon and module_name and attribute):
        close = difflib.get_close_matches(name, BUILTIN, n=1, cutoff=0.5)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        offered = f"built in: {', '.join(sorted(BUILTIN))}; your own: 'package.module:NAME'"
        raise UnknownBenchmark(f"unknown benchmark {name!r}{meant}; {offered}")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module raises while it is imported
        raise UnknownBenchmark(
            f"benchmark {name!r}: cannot import {module_name}: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, attribute, None)
    if not isinstance(found, Benchmark):
        raise UnknownBenchmark(f"benchmark {name!r}: {module_name} has no Benchmark called {attribute!r}")
    return found
