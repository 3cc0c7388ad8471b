"""A memory plan as a record: places, and what each of them will hold at its worst moment, in named bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Item:
    """What takes memory."""

    name: str
    num_bytes: float

    @property
    def gib(self) -> float:
        """In GiB."""
        return self.num_bytes / GIB


@dataclass(frozen=True, slots=True)
class Place:
    """A GPU, a node or a disk, and what lies on it at the moment when most does."""

    name: str  # "GPU of 1 engine"
    items: tuple[Item, ...]
    capacity: float | None  # bytes that may be filled; None: not known
    room: str = ""  # what that capacity is: "h100-80gb", "free here"
    count: int = 1  # places like this one

    @property
    def num_bytes(self) -> float:
        """All items together."""
        return sum(item.num_bytes for item in self.items)

    @property
    def largest(self) -> Item:
        """The item to look at first."""
        return max(self.items, key=lambda item: item.num_bytes)

    @property
    def fits(self) -> bool:
        """Whether it holds what lies on it; what is not known to be too small fits."""
        return self.capacity is None or self.num_bytes <= self.capacity

    @property
    def lacking(self) -> float:
        """Bytes by which it is too small; 0 where it is not."""
        return 0.0 if self.capacity is None else max(0.0, self.num_bytes - self.capacity)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a part must have beyond what it holds: reasons why a plan fails that are no sum of items."""

    place: str
    needed: float  # bytes
    available: float
    reason: str  # with the keys to change


@dataclass(frozen=True, slots=True)
class GivenUp:
    """What engines and learners that take turns on a GPU give up for each other (placement.share_gpus=turns)."""

    states: bool = True  # learners move masters, moments and gradients to main memory while engines sample
    weights: bool = False  # engines that sleep keep none (vLLM's level 2), so that every push brings all of them

    def __str__(self) -> str:
        states = "go to main memory" if self.states else "stay on the GPU"
        weights = "dropped, and pushed, all of them" if self.weights else "in main memory"
        return f"learners' masters and moments {states} while engines sample; weights of sleeping engines are {weights}"


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Every place of a run."""

    places: tuple[Place, ...]
    unmet: tuple[Demand, ...] = ()
    assumed: str = ""  # what the shapes were taken from, where there is no policy's folder yet
    recomputed: str = "none"  # learner.activation_checkpointing, auto decided
    learners_fit: bool = True  # whether every GPU with a learner rank holds what lies on it
    given_up: GivenUp | None = None  # None: nobody takes turns

    @property
    def fits(self) -> bool:
        """Whether all of it does."""
        return not self.unmet and all(place.fits for place in self.places)

    @property
    def lacking(self) -> float:
        """Bytes too many over all places."""
        return sum(place.lacking * place.count for place in self.places) + sum(
            demand.needed - demand.available for demand in self.unmet
        )

    def as_dict(self) -> dict[str, Any]:
        """For --json; GiB."""
        return {
            "fits": self.fits,
            "assumed": self.assumed,
            "activation_checkpointing": self.recomputed,
            "given_up": asdict(self.given_up) if self.given_up else None,
            "places": [
                {
                    "name": place.name,
                    "count": place.count,
                    "gib": round(place.num_bytes / GIB, 2),
                    "capacity_gib": None if place.capacity is None else round(place.capacity / GIB, 2),
                    "room": place.room,
                    "fits": place.fits,
                    "largest": place.largest.name,
                    "items": {item.name: round(item.gib, 3) for item in place.items},
                }
                for place in self.places
            ],
            "unmet": [demand.reason for demand in self.unmet],
        }


def items(named: Iterable[tuple[str, float]]) -> tuple[Item, ...]:
    """Items of (name, bytes), those of nothing left out."""
    return tuple(Item(name, num_bytes) for name, num_bytes in named if num_bytes > 0)
