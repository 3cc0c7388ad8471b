"""What `dynframe encode-stats` prints: sums over clips, each clip's tokens, what was skipped."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rl.encode_stats.rows import (
    NO_VIDEO_NAME,
    REFERENCE,
    Block,
    EncodeReport,
    Total,
    binned,
    labels,
    totals,
)

MIB = 2**20


def print_report(report: EncodeReport, console: Console) -> None:
    """What was looked at, the sums over clips, each clip's tokens, and what was skipped."""
    console.print(
        f"vision tower: {escape(report.geometry)}, {report.vision_parameters / 1e6:.1f} M parameters · of each clip "
        f"the first {report.max_seconds:g} s, at most {report.max_frames} frames of at most {report.max_pixels} pixels",
        highlight=False,
    )
    sums = totals(report.rows)
    for table in (_tokens_table(sums), _scenes_table(sums), _cost_table(sums), _clips_table(report)):
        console.print(table)
    others = [skipped for skipped in report.skipped if skipped.reason.startswith(NO_VIDEO_NAME)]
    if others:
        kinds = Counter(skipped.reason for skipped in others)
        listed = ", ".join(f"{count} {reason}" for reason, count in kinds.most_common())
        console.print(f"[yellow]passed over[/] {len(others)} other files: {escape(listed)}", highlight=False)
    for skipped in (one for one in report.skipped if one not in others):
        console.print(f"[yellow]skipped[/] {escape(skipped.path)}: {escape(skipped.reason)}", highlight=False)


def _tokens_table(sums: Sequence[Total]) -> Table:
    table = _table("all clips: visual tokens", "fps", "mode", "frames", "tokens", "to pairs", "K/T", "K/⌈T/2⌉")
    for total in sums:
        table.add_row(
            f"{total.asked_fps:g}",
            total.mode,
            str(total.num_frames),
            str(total.visual_tokens),
            _signed(total.saving),
            f"{total.num_scenes / total.num_frames:.2f}",
            f"{total.num_scenes / total.num_pairs:.2f}",
        )
    return table


def _scenes_table(sums: Sequence[Total]) -> Table:
    table = _table("all clips: scenes by their length in frames", "fps", "mode", *binned({}))
    for total in sums:
        table.add_row(f"{total.asked_fps:g}", total.mode, *map(str, binned(total.histogram).values()))
    return table


def _cost_table(sums: Sequence[Total]) -> Table:
    headings = ("TFLOPs", "Kpixel/TFLOP", "peak MiB", "decode s", "cut s", "encode s")
    table = _table("all clips: cost (peak of the hungriest clip; CPU seconds)", "fps", "mode", *headings)
    for total in sums:
        table.add_row(
            f"{total.asked_fps:g}",
            total.mode,
            f"{total.flops / 1e12:.3g}",
            f"{total.kpixel_per_tflop:.4g}",
            "-" if total.peak_bytes is None else f"{total.peak_bytes / MIB:.0f}",
            f"{total.decode_s:.2f}",
            f"{total.segment_s:.3f}",
            "-" if total.encode_s is None else f"{total.encode_s:.2f}",
        )
    return table


def _clips_table(report: EncodeReport) -> Table:
    table, rows = _table("each clip: visual tokens", "clip", "fps", "frames", *report.modes), report.rows
    names = labels([row.block.clip for row in rows])
    by_block: dict[tuple[str, float], dict[str, Block]] = {}
    for row in rows:
        by_block.setdefault((row.block.clip, row.block.asked_fps), {})[row.block.mode] = row.block
    for (clip, asked_fps), blocks in by_block.items():
        pairs = blocks[REFERENCE]
        shown = f"{asked_fps:g}" if math.isclose(pairs.fps, asked_fps) else f"{asked_fps:g} ({pairs.fps:.3g})"
        cells = (
            f"{block.visual_tokens} ({_signed(1 - block.visual_tokens / pairs.visual_tokens)})"
            if mode != REFERENCE
            else str(block.visual_tokens)
            for mode, block in blocks.items()
        )
        table.add_row(escape(names[clip]), shown, str(pairs.num_frames), *cells)
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("clip", "mode") else "right")
    return table


def _signed(saving: float) -> str:
    """As a change of the number of tokens: -42% is a saving."""
    percent = round(-100 * saving)
    return f"{percent:+d}%" if percent else "0%"
