"""A project of your own: how its rows are read, what it rewards, how it is measured. The package stays as it is."""

from envs.answers.windows import interval_iou
from envs.benchmarks.benchmark import Benchmark, Example
from envs.benchmarks.reading import read_examples
from envs.data.formats import make_task
from rl.trajectory import AnswerKind, TimeSpan

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


def thrift(task, call, free_s=0.5):
    """A reward of the look: 1 for a window that is as long as the lamp is lit, less for each second more than that."""
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
