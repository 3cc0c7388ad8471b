"""The command line. Heavy libraries are imported by the commands that need them, so that `--help` answers at once."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from rl.cli.terminal import configure_logging, console, errors, print_json, say
from rl.config.errors import ConfigError
from rl.config.file import load_config
from rl.config.inputs import split_inputs
from rl.config.run import RunConfig, anchored
from rl.run.findings import Finding, as_dict, passed, print_findings
from rl.run.stop_signals import StopRequested

EXIT_FAILED, EXIT_USAGE, EXIT_GATE = 1, 2, 3
JOB_COPY = "working_dir_files"  # in the path of a job's working directory: a copy, deleted with the job
EPILOG = (
    "Exit codes: 0 done · 1 failed while running · 2 the command, configuration or data is wrong · 3 a check failed · "
    "130 stopped by Ctrl-C · 143 stopped by SIGTERM."
)

app = typer.Typer(
    name="dynframe",
    help="Train video language models that look again.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="CONFIG... [KEY=VALUE]...",
        help="YAML files, merged left to right, then overrides such as `trainer.steps=10` or "
        "`rewards.answer.weight=0.8`.",
    ),
]
Best = Annotated[bool, typer.Option("--best", help="Of the run, the best checkpoint (`trainer.best_metric`).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


@app.command(epilog=EPILOG)
def train(inputs: Inputs) -> None:
    """Train a policy: cold start if configured, then reinforcement learning.

    Resumes by itself from the newest valid checkpoint of the same run (`resume=auto|never|PATH`).
    Everything lands in `output_dir/name`: metrics.jsonl, trajectories/, checkpoints/, summary.json.
    """
    config = _load(inputs)
    from rl.run.train import run_training

    run_training(config, console)


@app.command("cold-start", epilog=EPILOG)
def cold_start(inputs: Inputs) -> None:
    """Only the supervised stage on retrieval traces; prints the folder of the resulting policy.

    The result is cached by a fingerprint of everything it depends on; `dynframe train` finds it there.
    """
    config = _load(inputs)
    from rl.run.train import run_cold_start_only

    say(str(run_cold_start_only(config, console)))


@app.command(epilog=EPILOG)
def check(inputs: Inputs, as_json: AsJson = False) -> None:
    """Validate configuration, data, rewards, resources and token budgets before anything starts."""
    config = _load(inputs)
    from rl.run.check import run_checks

    _conclude(run_checks(config, console), as_json)


@app.command("validate-data", epilog=EPILOG)
def validate_data(
    inputs: Inputs,
    workers: Annotated[int, typer.Option(help="Decoding processes; 0: one per core.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Decode every clip of the configured data once and judge every row: ok, repaired or quarantined, and why.

    Verdicts on clips go to `data.quarantine`, one line as soon as one is known: training leaves quarantined clips out,
    and a killed validation goes on where it was. A clip whose file has changed since is decoded again. Exits 3 if a row
    cannot be used.
    """
    config = _load(inputs)
    from rl.cli.validation import print_report
    from rl.cli.validation import validate_data as run_validation

    report = run_validation(config, console, workers=workers)
    print_report(report, console)
    if as_json:
        print_json(report.as_dict())
    if not report.passed:
        raise typer.Exit(EXIT_GATE)


@app.command(epilog=EPILOG)
def parity(
    inputs: Inputs,
    as_json: AsJson = False,
    tasks: Annotated[
        int, typer.Option(help="How many tasks to play; each gives a group of trajectories to compare.", min=1)
    ] = 8,
) -> None:
    """Compare engine and learner log-probs on real two-turn trajectories, per segment, with negative controls.

    Exits 3 if the largest difference in fp32 exceeds `parity.gate_nat`, or if a control (wrong durations, shifted
    pixels, permuted scenes) is not at least 100 times larger: then the comparison has no teeth.
    """
    config = _load(inputs)
    from rl.policy.vllm_plugin import engine_environment

    os.environ.update(engine_environment("cuda" if config.placement.rollout_gpus else "cpu"))  # before torch
    from rl.cli.inspection import parity_failures, run_parity

    report = run_parity(config, console, num_tasks=tasks)
    if as_json:
        print_json(report.as_dict())
    if parity_failures(report, config):
        raise typer.Exit(EXIT_GATE)


@app.command("verify-resume", epilog=EPILOG)
def verify_resume(
    inputs: Inputs,
    at: Annotated[int, typer.Option("--at", help="Steps before the kill.", min=1)],
    steps: Annotated[int, typer.Option("--steps", help="Steps after it.", min=1)],
    moment: Annotated[
        str, typer.Option(help="boundary (the checkpoint is just published) | mid-step (what came after it is lost)")
    ] = "boundary",
    timeout: Annotated[float, typer.Option(help="Of each run, in minutes.", min=0.1)] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Prove that a run that is killed and resumed is the run that never stopped, bit for bit.

    Trains `at + steps` steps straight; then `at` steps, SIGKILL of every process, `resume=auto`, and the rest; with
    `rollout.deterministic=true`. Exits 3 and names the step and the first fingerprint that differs, if one does.
    """
    config = _load(inputs)
    from rl.fault_injection.verify_resume import verify_resume as run_verification

    proof = run_verification(config, console, at=at, steps=steps, moment=moment, run_timeout_s=60 * timeout)
    if as_json:
        print_json(proof.as_dict())
    if not proof.passed:
        raise typer.Exit(EXIT_GATE)


@app.command(epilog=EPILOG)
def chaos(
    inputs: Inputs,
    minutes: Annotated[float, typer.Option(help="Of faults, from the first step on.", min=0.1)] = 10.0,
    seed: Annotated[int, typer.Option(help="Which faults, where, and when.")] = 0,
    every: Annotated[float, typer.Option(help="Seconds between two faults, on average.", min=1.0)] = 20.0,
    patience: Annotated[float, typer.Option(help="Minutes without a step, after which the run hangs.", min=1.0)] = 30.0,
    only: Annotated[str, typer.Option(help="Faults that may come, separated by commas; default: all.")] = "",
    reference: Annotated[
        bool | None,
        typer.Option(
            "--reference/--no-reference",
            help="Compare every step with a run without faults. Default: if `rollout.deterministic`.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Inject random faults into a real run, and check that nothing was lost or repeated.

    Workers, decoders and the whole run are killed or stopped, checkpoints are damaged; the run is started again with
    the same command as often as it takes, and has to finish. Exits 3 if an invariant does not hold: every step and
    every task once, one policy version a step, parity, every fault detected and recovered, nothing left behind.
    """
    config = _load(inputs)
    from rl.fault_injection.chaos import Experiment, run_chaos
    from rl.fault_injection.schedule import FAULT_TYPES

    names = tuple(name.strip() for name in only.split(",")) if only else tuple(FAULT_TYPES)
    compared = config.rollout.deterministic if reference is None else reference
    experiment = Experiment(minutes, seed, every, names, compared, timeout_s=60 * patience)
    result = run_chaos(config, experiment, console)
    if as_json:
        print_json(result.as_dict())
    if not result.passed:
        raise typer.Exit(EXIT_GATE)


@app.command(epilog=EPILOG)
def rollout(
    inputs: Inputs,
    tasks: Annotated[int, typer.Option(help="Number of tasks to play.", min=1)] = 4,
    split: Annotated[str, typer.Option(help="train | held_out")] = "held_out",
    greedy: Annotated[bool, typer.Option(help="One greedy trajectory per task instead of a sampled group.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the records as JSON lines to this file.")] = None,
) -> None:
    """Play tasks with the policy and print what it did: text, windows asked, frames seen, rewards."""
    config = _load(inputs)
    from rl.cli.inspection import run_rollout

    run_rollout(config, console, num_tasks=tasks, split=split, greedily=greedy, out=out)


@app.command("eval", epilog=EPILOG)
def evaluate(
    inputs: Inputs,
    run: Annotated[
        Path | None, typer.Option(help="Evaluate this run's newest checkpoint instead of the policy in CONFIG.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Or this checkpoint.")] = None,
    best: Best = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Move an earlier evaluation of that name aside, and begin anew.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Play a benchmark greedily and measure it: `evaluation.benchmark=NAME evaluation.path=… evaluation.video_root=…`.

    Without a benchmark: the held-out tasks of CONFIG, judged by its rewards. `retrieval.max_calls=0` is the baseline
    that may not look again. Everything lands in `eval/NAME` of the run (RUN, or `output_dir/name`): predictions.jsonl,
    line by line, and metrics.json with bootstrap intervals. An evaluation that was interrupted goes on when the command
    is given again.
    """
    if run is not None and checkpoint is not None:
        raise ConfigError("command line: --run takes a run's checkpoint by itself; give one of --run and --checkpoint")
    if best and run is None:
        raise ConfigError("command line: --best is of a run; give --run RUN")
    config = _load(inputs)
    from rl.evaluation.run_evaluation import run_evaluation

    report = run_evaluation(config, console, run=checkpoint if run is None else run, best=best, restart=restart)
    if as_json:
        print_json(report)


@app.command(epilog=EPILOG)
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Runs, folders such as RUN/eval/NAME, or their metrics.json; the first is compared with."),
    ],
    name: Annotated[str, typer.Option(help="Which evaluation of the runs, if they have several in common.")] = "",
    as_json: AsJson = False,
) -> None:
    """Put evaluations side by side: values with intervals, differences to the first, paired significance."""
    from rl.evaluation.compare import compare as compare_evaluations
    from rl.evaluation.compare import load_evaluations, print_comparison

    comparison = compare_evaluations(load_evaluations(runs, name))
    print_comparison(comparison, console)
    if as_json:
        print_json(comparison.as_dict())


@app.command(epilog=EPILOG)
def export(
    run: Annotated[Path, typer.Argument(help="A run's folder, or one of its checkpoints.")],
    folder: Annotated[Path, typer.Argument(help="Where the Hugging Face folder goes; must not exist.")],
    best: Best = False,
) -> None:
    """Turn a checkpoint into a Hugging Face folder that transformers and vLLM (with this package) load."""
    from rl.run.train import run_export

    run_export(run, folder, best=best)
    say(f"exported to {folder}")


@app.command(epilog=EPILOG)
def report(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    out: Annotated[Path | None, typer.Option(help="The HTML file; by default report.html in the run's folder.")] = None,
    max_mib: Annotated[float, typer.Option(help="Largest size of the file, in MiB.", min=0.1)] = 20.0,
    serve: Annotated[bool, typer.Option("--serve", help="Follow a live run instead of writing a file.")] = False,
    port: Annotated[int, typer.Option(help="Of --serve, on 127.0.0.1; 0 takes a free one.", min=0, max=65535)] = 8267,
) -> None:
    """Show a run: curves, every group with the spread of its rewards, every trajectory on the video's time axis.

    Writes one HTML file that opens from disk without network. With `--serve`, follows a live run on 127.0.0.1.
    """
    from rl.cli.viewer import run_report, serve_report

    if serve:
        serve_report(run, port=port, console=console)
    else:
        run_report(run, out, max_mib=max_mib, console=console)


@app.command(epilog=EPILOG)
def submit(
    inputs: Inputs,
    address: Annotated[str, typer.Option(help="The cluster's job server.")] = "http://127.0.0.1:8265",
    follow: Annotated[bool, typer.Option(help="Print the job's output until it ends.")] = True,
    dry_run: Annotated[bool, typer.Option(help="Print what would be submitted and stop.")] = False,
) -> None:
    """Submit `dynframe train` as a Ray job, with this folder as its working directory."""
    config = _load(inputs)  # refuse here what the cluster would refuse minutes later
    if (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # `ray start` decides alike; Ray's job client would not ask
    from actors.ray_connection import require_auth_mode
    from cluster.submit import submit_training

    require_auth_mode()
    code = submit_training(
        inputs,
        run=config.name,
        address=address,
        follow=follow,
        dry_run=dry_run,
        write=say,
        stop_grace_s=config.trainer.stop_grace_s,
    )
    raise typer.Exit(code)


@app.command("encode-stats", epilog=EPILOG)
def encode_stats(
    clips: Annotated[list[Path], typer.Argument(metavar="CLIPS...", help="Videos, and folders to search for them.")],
    fps: Annotated[str, typer.Option(help="Frame rates, separated by commas.")] = "2,4,8,10",
    geometry: Annotated[
        str, typer.Option(help="Vision tower: tiny | qwen2.5-vl-3b (needs no weights) | a checkpoint's FOLDER.")
    ] = "tiny",
    measure: Annotated[
        bool | None,
        typer.Option(
            "--measure/--count",
            help="Run a tower of that size (random weights: its cost is the same), or only count. "
            "Default: run it up to 50 M parameters.",
        ),
    ] = None,
    max_seconds: Annotated[float, typer.Option(help="Of each clip, from its start.")] = 30.0,
    max_frames: Annotated[int, typer.Option(help="Of each clip at each rate.", min=1)] = 64,
    max_pixels: Annotated[int, typer.Option(help="Of a frame, after resizing.", min=1)] = 151_200,
    repeats: Annotated[int, typer.Option(help="Of each measurement of seconds; the median counts.", min=1)] = 3,
    csv: Annotated[Path | None, typer.Option(help="Write every row to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw tokens and scene lengths to this file (matplotlib).")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what FlexiVideo's encoder costs on your clips: fixed pairs and sixes, and dynamic scenes.

    Visual tokens, scene lengths, TFLOPs and Kpixel per TFLOP are counted; seconds (CPU) and peak memory are measured.
    What cannot be read as a video is reported and skipped.
    """
    from rl.encode_stats.figure import draw, require_drawable
    from rl.encode_stats.measure import EncodeLimits, parse_rates, require_writable
    from rl.encode_stats.measure import encode_stats as run_encode_stats
    from rl.encode_stats.rows import as_dict as report_as_dict
    from rl.encode_stats.rows import write_csv
    from rl.encode_stats.tables import print_report

    rates, limits = parse_rates(fps), EncodeLimits(max_seconds, max_frames, max_pixels)
    for option, path in (("--csv", csv), ("--plot", plot)):
        require_writable(option, path)
    if plot is not None:
        require_drawable(plot)
    report = run_encode_stats(clips, rates, geometry, limits, console, measure=measure, repeats=repeats)
    print_report(report, console)
    if csv is not None:
        write_csv(report.rows, csv)
    if plot is not None:
        draw(report, plot)
    if as_json:
        print_json(report_as_dict(report))


@app.command(epilog=EPILOG)
def doctor(as_json: AsJson = False) -> None:
    """Report versions, processors, memory, what works and what is missing, in seconds."""
    from rl.cli.doctor import examine

    _conclude(examine(), as_json)


def main() -> None:
    """Entry point: expected failures become one clear line and an exit code, never a traceback."""
    configure_logging()
    if not Path("/dev/nvidiactl").exists():
        os.environ.setdefault(
            "DS_ACCELERATOR", "cpu"
        )  # or DeepSpeed, wherever it is imported, warns that it had to guess
    if not os.environ.get("RAY_ADDRESS"):  # a Ray started here listens on loopback; read once, when ray is imported
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # `ray job stop`: workers are released on the way out
    try:
        app()
    except (ConfigError, FileNotFoundError) as error:
        _fail(error, EXIT_USAGE)
    except StopRequested as stop:
        errors.print(f"{stop}; saved: the same command goes on from there", highlight=False)
        raise SystemExit(stop.exit_code) from None
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        _fail(error, EXIT_FAILED)


def _load(inputs: list[str]) -> RunConfig:
    config = load_config(*split_inputs(inputs))
    if JOB_COPY not in Path.cwd().parts:
        return config
    home = Path.home() / "dynframe-rl"
    console.print(f"inside a Ray job: relative folders are taken from {home}, since Ray deletes the job's own copy")
    return anchored(config, home)


def _conclude(findings: list[Finding], as_json: bool) -> None:
    print_findings(findings, console)
    if as_json:
        print_json(as_dict(findings))
    if not passed(findings):
        raise typer.Exit(EXIT_GATE)


def _fail(error: object, code: int) -> None:
    logging.getLogger(__name__).debug("failed", exc_info=True)
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    errors.print("[bold red]error:[/] ", end="")
    errors.print(str(message) or type(error).__name__, markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(code)
