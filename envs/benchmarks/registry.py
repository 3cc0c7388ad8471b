"""Names of benchmarks -> benchmarks: a literal table, looked up late, refusing clearly."""

from __future__ import annotations

from envs.benchmarks.benchmark import Benchmark
from rl.user_code.errors import UserCodeError
from rl.user_code.loading import load_object, nearest
from rl.user_code.reference import parse_reference

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
    """Find a benchmark by built-in name, "package.module:NAME" or "path/file.py:NAME".

    Raises:
        UnknownBenchmark: no such name, file, module or attribute, it cannot be imported, or it is no Benchmark.
    """
    reference = parse_reference(BUILTIN.get(name, name))
    if reference is None:
        offered = f"built in: {', '.join(sorted(BUILTIN))}; your own: 'package.module:NAME' or 'path/file.py:NAME'"
        raise UnknownBenchmark(f"unknown benchmark {name!r}{nearest(name, BUILTIN)}; {offered}")
    try:
        found = load_object(f"benchmark {name!r}", reference, "Benchmark")
    except UserCodeError as error:
        raise UnknownBenchmark(str(error)) from error
    if not isinstance(found, Benchmark):
        raise UnknownBenchmark(
            f"benchmark {name!r}: {reference.name!r} in {reference.source} is no Benchmark, but {type(found).__name__}"
        )
    return found
