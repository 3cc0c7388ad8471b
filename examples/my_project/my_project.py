"""A project of your own: how its rows are read, what the policy may ask for, its rewards, and how it is measured.

The package stays as it is.
"""

from envs.answers.windows import interval_iou
from envs.benchmarks.benchmark import Benchmark, Example
from envs.benchmarks.reading import read_examples
from envs.data.formats import make_task
from rl.trajectory import AnswerKind, MalformedCall, RefusedCall, TimeSpan, ToolCall

QUESTION = "<video>\nWhich colour has the lamp?"


def reader(path):
    """Rows of a table, as `data.train.format` names it: (line, values of a task); other keys become `task.extra`."""
    for line, text in enumerate(path.read_text().splitlines()[1:], start=2):
        clip, colour, start, end = text.split("\t")
        yield (
            line,
            {
                "prompt": QUESTION,
                "video": f"clips/{clip}.mp4",
                "answer": colour,
                "fps": 4,
                "gt_span_start": float(start),
                "gt_span_end": float(end),
                "lit_s": float(end) - float(start),
            },
        )


def traces(path):
    """Replies to learn the form from: rows with `conversations`, which ask for a moment and for a window by turns."""
    for line, row in reader(path):
        middle_s = (row["gt_span_start"] + row["gt_span_end"]) / 2 + (line % 5 - 2) / 4  # half a second off at most
        look = f"<span>{max(0, middle_s - 1):g} - {min(6, middle_s + 1):g}</span><fps>4</fps>"
        call = f"<at>{middle_s:g}</at>" if line % 2 else look
        reply = f"<think>Look.{call}<video>It is {row['answer']}.</think><answer>{row['answer']}</answer>"
        spoken = (("human", QUESTION), ("gpt", reply))
        yield line, {**row, "conversations": [{"from": who, "value": text} for who, text in spoken]}


class Moment:
    """A tool: `<at>2.5</at>` shows the frame of one moment, which costs less than a window."""

    name, tags, nothing = "moment", ("<at>", "</at>"), "no frame"

    def parse(self, text, clip):
        """The request, tags included: granted, malformed or refused."""
        try:
            time_s = float(text.removeprefix("<at>").removesuffix("</at>"))
        except ValueError:
            return MalformedCall("the moment is no number")
        if not 0 <= time_s <= clip.duration_s:
            return RefusedCall("the moment is outside the clip")
        return ToolCall("moment", {"time_s": time_s}, span=TimeSpan(time_s, time_s), num_frames=1)

    def tokens(self, call, clip):
        """What it costs."""
        return clip.frames_tokens([call.arguments["time_s"]], 56 * 56)

    def insert(self, call, clip):
        """What the policy gets to see."""
        return clip.frames([call.arguments["time_s"]], 56 * 56)


def lit(task, call):
    """A reward of moments: 1 while the lamp is lit."""
    window = task.evidence_span
    return None if window is None else float(window.start_s <= call.arguments["time_s"] < window.end_s)


def thrift(task, call, free_s=0.5):
    """A reward of looks: 1 for a window that is as long as the lamp is lit, less for each second more than that."""
    if task.evidence_span is None:
        return None  # not annotated: this reward says nothing
    too_long_s = call.span.length_s - task.extra.get("lit_s", task.evidence_span.length_s)
    return max(0.0, 1.0 - max(0.0, too_long_s - free_s) / 4)


def read(annotation, video_root):
    """The benchmark's examples: the same table. A row that cannot be used is reported, not asked."""

    def example(line, row):
        window = TimeSpan(row["gt_span_start"], row["gt_span_end"])
        told = (row["video"], video_root, row["prompt"], row["answer"], (window,), None)
        return Example(make_task(f"lamp:{line}", *told, kind=AnswerKind.OPEN), (window,), group=row["answer"])

    return read_examples(reader(annotation), video_root, example)


def score(example, prediction):
    """The benchmark's metrics of one example: right, and how well the last look fits. Missing is 0."""
    right = prediction is not None and prediction.answer == example.task.answer
    looked = prediction.windows[-1] if prediction is not None and prediction.windows else None
    fits = 0.0 if looked is None else interval_iou(looked, example.windows[0])
    return {"accuracy": float(right), f"accuracy/{example.group}": float(right), "miou": fits}


LAMPS = Benchmark("lamps", "examples/my_project", read, score, headline="accuracy")
