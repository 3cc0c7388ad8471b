"""Are all tags there, once each, in order and properly nested?"""

from __future__ import annotations

import re

from rl.trajectory import Trajectory, VideoTask

_TAG = re.compile(r"</?(?:think|span|fps|zoom|box|answer)>")
_TRAILING_SPECIAL = re.compile(r"(?:>\|[a-z_]++\|<|\s)*+")  # <|im_end|> and the like, read from the text's end
_CALLS = (("<span>", "</span>", "<fps>", "</fps>"), ("<zoom>", "</zoom>", "<box>", "</box>"))  # of the built-in tools


def output_format(task: VideoTask, trajectory: Trajectory, *, require_call: bool = False) -> float:
    """R_format: 1 if the text is <think>… (<span>…</span><fps>…</fps>…)* …</think><answer>…</answer>, else 0.

    A zoom, <zoom>…</zoom><box>…</box>, may stand wherever a look may; what is written to call a user's tool is text.

    Order, nesting and uniqueness: every tag of this skeleton stands exactly once, calls may be repeated inside the
    thought (how many are granted is the environment's business), and nothing but blanks lies outside the thought and
    the answer, nor between </span> and <fps> or </zoom> and <box>. An empty answer is none.

    Args:
        require_call: whether a text without any call fails.
    """
    text = _without_trailing_special(trajectory.answer_text)
    tags = tuple(_TAG.findall(text))
    calls = [tags[place : place + 4] for place in range(1, len(tags) - 3, 4)]
    is_ordered = tags[:1] == ("<think>",) and tags[-3:] == ("</think>", "<answer>", "</answer>") and len(tags) % 4 == 0
    if not is_ordered or any(call not in _CALLS for call in calls) or (require_call and not calls):
        return 0.0
    texts = _TAG.split(text)  # one more than there are tags: what stands before, between and after them
    must_be_blank = (0, -1, -3, *(2 + 4 * call + 1 for call in range(len(calls))))
    return float(not any(texts[i].strip() for i in must_be_blank) and bool(texts[-2].strip()))


def _without_trailing_special(text: str) -> str:
    """Backwards, since a search for what ends a text starts anew at every blank in it: quadratic time."""
    return text[: len(text) - _TRAILING_SPECIAL.match(text[::-1]).end()]
