"""The picture of FlexiVideo's ablation: tokens against frame rate in each mode, and how long the scenes are.

The one file that draws with matplotlib, which is not needed to train: it is imported when a figure is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rl.config.errors import ConfigError
from rl.encode_stats.rows import OWN_MODE, EncodeReport, EncodeRow, Total, binned, labels, totals

MOST_CLIPS = 8  # drawn one by one; the sum over clips always is
COLUMNS = 4
LOOKS = {  # colours that are told apart by the colour-blind, and in grey by their dashes
    "fixed2": ("#444444", "-", "o"),
    "fixed6": ("#999999", "--", "s"),
    "dynamic_literal": ("#D55E00", "-", "^"),
    "dynamic_budget": ("#0072B2", "-", "D"),
    "dynamic_adaptive": ("#009E73", "-", "v"),
    OWN_MODE: ("#CC79A7", "-.", "P"),
}
NAMES = {
    "fixed2": "fixed, pairs",
    "fixed6": "fixed, sixes",
    "dynamic_literal": "dynamic, literal rule",
    "dynamic_budget": "dynamic, within pairs, differences at 1/4",
    "dynamic_adaptive": "dynamic, above the noise floor",
    OWN_MODE: "as the policy's folder says",
}


def require_drawable(path: Path) -> None:
    """Refuse before any work, rather than after it.

    Raises:
        ConfigError: matplotlib is absent, or the file's suffix is no format that it writes.
    """
    try:
        from matplotlib import backend_bases
    except ImportError as error:
        raise ConfigError(
            f"--plot needs matplotlib, which cannot be imported ({error}): pip install matplotlib, or leave --plot out"
        ) from error
    if path.suffix.lower().removeprefix(".") not in backend_bases.FigureCanvasBase.get_supported_filetypes():
        raise ConfigError(f"--plot {path}: a name must end in the picture's format, such as .png, .svg or .pdf")


def draw(report: EncodeReport, path: Path) -> None:
    """Write the figure; the file's suffix says in which format.

    Raises:
        ConfigError: as `require_drawable`.
    """
    require_drawable(path)
    from matplotlib.figure import Figure

    clips = list(labels([row.block.clip for row in report.rows]).items())[:MOST_CLIPS]
    sums = totals(report.rows)
    rates = list(dict.fromkeys(total.asked_fps for total in sums))
    token_rows = -(-(1 + len(clips)) // COLUMNS)
    scene_rows = -(-len(rates) // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 3 * (token_rows + scene_rows) + 0.6), layout="constrained")
    grid = figure.subplots(token_rows + scene_rows, COLUMNS, squeeze=False)
    _draw_tokens(grid[0][0], "all clips", [(t.mode, t.asked_fps, t.visual_tokens) for t in sums])
    for place, (clip, name) in enumerate(clips, start=1):
        points = [_point(row) for row in report.rows if row.block.clip == clip]
        _draw_tokens(grid[place // COLUMNS][place % COLUMNS], name, points)
    for place, fps in enumerate(rates):
        axes = grid[token_rows + place // COLUMNS][place % COLUMNS]
        _draw_scenes(axes, f"scenes at {fps:g} fps, all clips", [total for total in sums if total.asked_fps == fps])
    for axes in grid.flat:
        axes.set_visible(axes.has_data())
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(report.modes), frameon=False)
    figure.savefig(path, dpi=110)


def _point(row: EncodeRow) -> tuple[str, float, int]:
    return row.block.mode, row.block.asked_fps, row.block.visual_tokens


def _draw_tokens(axes, title: str, points: Sequence[tuple[str, float, int]]) -> None:
    for mode, (colour, dashes, marker) in LOOKS.items():
        line = sorted((fps, tokens) for named, fps, tokens in points if named == mode)
        if line:
            rates, tokens = zip(*line, strict=True)
            axes.plot(rates, tokens, dashes, color=colour, marker=marker, markersize=4, label=NAMES[mode])
            axes.set_xticks(rates)
    axes.set_title(title, fontsize=10, parse_math=False)  # a clip may be named with dollars
    axes.set_xlabel("frames per second asked for", fontsize=8)
    axes.set_ylabel("visual tokens", fontsize=8)
    axes.set_ylim(bottom=0)
    _quiet(axes)


def _draw_scenes(axes, title: str, sums: Sequence[Total]) -> None:
    """Share of a mode's scenes in each bin of lengths, side by side."""
    width = 0.8 / len(LOOKS)
    for place, total in enumerate(sums):
        counts = binned(total.histogram)
        shares = [100 * count / total.num_scenes for count in counts.values()]
        at = [x + (place - (len(sums) - 1) / 2) * width for x in range(len(counts))]
        axes.bar(at, shares, width, color=LOOKS[total.mode][0])
        axes.set_xticks(range(len(counts)), list(counts))
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("frames in a scene", fontsize=8)
    axes.set_ylabel("per cent of the mode's scenes", fontsize=8)
    _quiet(axes)


def _quiet(axes) -> None:
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
