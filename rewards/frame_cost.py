"""What the frames of a look cost."""

from __future__ import annotations

from rl.trajectory import RetrievalCall, VideoTask


def frame_cost(task: VideoTask, call: RetrievalCall, *, price: float = 1.0, budget_frames: int = 32) -> float:
    """A price per inserted frame: -price * N / budget_frames, N the frames that a granted call has inserted.

    The seeds claim less context for the same answer and name no price; this one is the project's own, and in no
    configuration unless you add it. Several calls add up, whatever `scoring.calls` says of other terms; a trajectory
    without a granted call has inserted nothing and costs nothing.

    Args:
        price: reward that `budget_frames` frames cost. It says how much the price counts where this is the only term
            of its segment, whose weight normalisation takes away.
        budget_frames: frames that cost `price`; 32 is the default of `retrieval.max_frames`, the most of one call.
    Returns:
        -price..0 for a call within the budget.
    Raises:
        ValueError: price is negative, or budget_frames is not positive.
    """
    if price < 0 or budget_frames < 1:
        raise ValueError(f"price must be >= 0 and budget_frames >= 1, got {price}, {budget_frames}")
    return -price * call.num_frames / budget_frames
