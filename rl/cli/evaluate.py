"""`dynframe eval`, `compare`, `export` and `report`: what a run has achieved, and taking it away."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rl.cli.arguments import AsJson, Best, Inputs, load, load_runnable
from rl.cli.terminal import console, print_json, say
from rl.config.errors import ConfigError


def evaluate(
    inputs: Inputs,
    run: Annotated[
        Path | None, typer.Option(help="Evaluate this run's newest checkpoint instead of the policy in CONFIG.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Or this checkpoint.")] = None,
    best: Best = False,
    restart: Annotated[
        bool,
        typer.Option("--restart", metavar="", help="Move an earlier evaluation of that name aside, and begin anew."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Roll out a benchmark greedily and measure it, with 95 % intervals.

    The benchmark: `evaluation.benchmark=NAME evaluation.path=… evaluation.video_root=…`. Without one: the held-out
    tasks of CONFIG, scored by its rewards. `retrieval.max_calls=0` is the baseline that may not look again.

    Everything lands in `eval/NAME` of the run (RUN, or `output_dir/name`): predictions.jsonl, line by line, and
    metrics.json. An evaluation that was interrupted goes on when the command is given again.

    Example: `dynframe eval configs/quickstart.yaml --run runs/quickstart --best`
    """
    if run is not None and checkpoint is not None:
        raise ConfigError("command line: --run takes a run's checkpoint by itself; give one of --run and --checkpoint")
    if best and run is None:
        raise ConfigError("command line: --best is of a run; give --run RUN")
    config = load(inputs) if run or checkpoint else load_runnable(inputs)
    from rl.evaluation.run_evaluation import run_evaluation

    report = run_evaluation(config, console, run=checkpoint if run is None else run, best=best, restart=restart)
    if as_json:
        print_json(report)


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Runs, folders such as RUN/eval/NAME, or their metrics.json; the first is compared with.",
        ),
    ],
    name: Annotated[str, typer.Option(help="Which evaluation of the runs, if they have several in common.")] = "",
    as_json: AsJson = False,
) -> None:
    """Put evaluations side by side: values with intervals, differences to the first, paired significance.

    Example: `dynframe compare runs/grpo runs/sd_grpo --name nextgqa`
    """
    from rl.evaluation.compare import compare as compare_evaluations
    from rl.evaluation.compare import load_evaluations, print_comparison

    comparison = compare_evaluations(load_evaluations(runs, name))
    print_comparison(comparison, console)
    if as_json:
        print_json(comparison.as_dict())


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or one of its checkpoints.")],
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where the Hugging Face folder goes; must not exist.")
    ],
    best: Best = False,
    adapter: Annotated[
        bool, typer.Option("--adapter", metavar="", help="Only what LoRA has trained, as peft loads it.")
    ] = False,
    base: Annotated[
        bool, typer.Option("--base", metavar="", help="The policy that the run began with; adapters go onto it.")
    ] = False,
) -> None:
    """Turn a checkpoint into a Hugging Face folder that others use without this package.

    transformers loads it with `trust_remote_code=True`: the model's and the processor's code lie beside the weights.
    vLLM loads it where this package is installed. README.md is its model card, from what the run has recorded; the
    licence is yours to add.

    Example: `dynframe export runs/quickstart my_policy --best`
    """
    from rl.export.export_run import adapter_export, base_export, run_export

    if base and (adapter or best):
        raise ConfigError("--base is the policy before any step: leave out --adapter and --best")
    if base:
        base_export(run, folder, console)
    elif adapter:
        adapter_export(run, folder, console, best=best)
    else:
        run_export(run, folder, best=best)
    say(f"exported to {folder}")


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="A run's folder; with --serve also several, and folders that hold runs."),
    ],
    out: Annotated[Path | None, typer.Option(help="The HTML file; by default report.html in the run's folder.")] = None,
    max_mib: Annotated[float, typer.Option(help="Largest size of the file, in MiB.", min=0.1)] = 20.0,
    serve: Annotated[
        bool, typer.Option("--serve", metavar="", help="Follow live runs instead of writing a file.")
    ] = False,
    port: Annotated[int, typer.Option(help="Of --serve, on 127.0.0.1; 0 takes a free one.", min=0, max=65535)] = 8267,
) -> None:
    """Show a run: curves, every group with the spread of its rewards, every trajectory on the video's time axis.

    Writes one HTML file that opens from disk without network. With `--serve`, follows a live run on 127.0.0.1; of
    several runs, or of a folder that holds runs, it lists them, compares their curves, and shows what their
    evaluations predicted, wrong answers first.

    Example: `dynframe report runs/quickstart`, or `dynframe report --serve runs`
    """
    from rl.cli.viewer import run_report, serve_report

    if serve:
        serve_report(runs, port=port, console=console)
    elif len(runs) == 1:
        run_report(runs[0], out, max_mib=max_mib, console=console)
    else:
        raise ConfigError("command line: a file is of one run; add --serve to see several")
