"""Every credit rule on a bandit small enough to enumerate: what its gradient is on average, and how much it scatters.

    python -m benchmarks.learning.bandit                         # the table
    python -m benchmarks.learning.bandit --plot bandit.png       # and the figure

The policy is a table of five numbers: the logit of asking for a look at all, the logits of three windows, and the logit
of reading the answer off the evidence where it is seen. All groups of G siblings are enumerated with their
probabilities, so that expectation and variance of an estimator are sums, not samples.

Legend: G siblings of one task · D parameters of the policy (call, three windows, read).
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np

from benchmarks.tables import print_table
from rl.algorithm.advantages import Credit, credit_group
from rl.config.algorithm import AdvantageConfig
from rl.trajectory import SegmentRewards

NUM_WINDOWS = 3
GROUP_SIZE = 4  # G of the table: 8 takes a minute
CreditOf = Callable[[Sequence[SegmentRewards], Sequence[bool]], Sequence[Credit]]  # (rewards_G, called_G) -> credit_G
LOOK, ANSWER = slice(0, 1 + NUM_WINDOWS), slice(1 + NUM_WINDOWS, None)  # parameters of either segment


@dataclass(frozen=True, slots=True)
class Outcome:
    """One way an episode can go."""

    probability: float
    sampling: float  # R_samp
    reasoning: float  # R_reason
    called: bool
    look_score_D: np.ndarray  # gradient of the log-probability of the tokens up to the call; all 0 without one
    answer_score_D: np.ndarray  # of the tokens after it; of all tokens where there was no call


@dataclass(frozen=True, slots=True)
class Bandit:
    """A world and a policy in it.

    A window shows the evidence with a probability of its own. Who sees it reports it with the probability of reading,
    else another option; who does not see it guesses.
    """

    call_logit: float = 0.4
    window_logits: tuple[float, ...] = (0.3, -0.2, 0.1)
    read_logit: float = 1.5
    window_rewards: tuple[float, ...] = (0.1, 0.5, 0.9)
    shows_evidence: tuple[float, ...] = (0.0, 0.5, 1.0)  # by window
    options: int = 4  # of an answer; a guess is right once in so many
    wrong_labels: float = 0.0  # share of tasks whose reference answer is wrong

    def task_kinds(self) -> list[tuple[float, list[Outcome]]]:
        """(probability, outcomes) of tasks that are annotated right and wrong: siblings share the annotation."""
        kinds = [(1 - self.wrong_labels, False), (self.wrong_labels, True)]
        return [(share, list(self._outcomes(mislabelled))) for share, mislabelled in kinds if share > 0]

    def objective_gradients(self) -> tuple[np.ndarray, np.ndarray]:
        """Analytic gradients of E[R_samp] and E[R_reason]: sum over outcomes of p R grad log p. D each."""
        pairs = [(share * o.probability, o) for share, outcomes in self.task_kinds() for o in outcomes]
        scores = [(p, o, o.look_score_D + o.answer_score_D) for p, o in pairs]
        return sum(p * o.sampling * score_D for p, o, score_D in scores), sum(
            p * o.reasoning * score_D for p, o, score_D in scores
        )

    def _outcomes(self, mislabelled: bool) -> Iterator[Outcome]:
        call, read = _sigmoid(self.call_logit), _sigmoid(self.read_logit)
        windows = np.exp(self.window_logits) / np.exp(self.window_logits).sum()
        declined_D, nothing_D = self._vector(call=-call), self._vector()
        right_guess = 1 / self.options
        for right, chance in ((1.0, right_guess), (0.0, 1 - right_guess)):
            yield Outcome((1 - call) * chance, 0.0, right, False, nothing_D, declined_D)
        for k, (window, reward, shows) in enumerate(
            zip(windows, self.window_rewards, self.shows_evidence, strict=True)
        ):
            look_D = self._vector(call=1 - call, windows=np.eye(NUM_WINDOWS)[k] - windows)
            for right, chance in ((1.0, right_guess), (0.0, 1 - right_guess)):
                yield Outcome(call * window * (1 - shows) * chance, reward, right, True, look_D, nothing_D)
            read_D, misread_D = self._vector(read=1 - read), self._vector(read=-read)
            slip = (1 - read) / (self.options - 1)  # onto one particular wrong option
            seen = (
                [(0.0, read, read_D), (1.0, slip, misread_D), (0.0, 1 - read - slip, misread_D)]
                if mislabelled
                else [(1.0, read, read_D), (0.0, 1 - read, misread_D)]
            )
            for right, chance, answer_D in seen:
                yield Outcome(call * window * shows * chance, reward, right, True, look_D, answer_D)

    def _vector(self, call: float = 0.0, windows: Sequence[float] = (0.0,) * NUM_WINDOWS, read: float = 0.0):
        return np.array([call, *windows, read])


@dataclass(frozen=True, slots=True)
class Estimator:
    """The gradient of one group, as a random vector."""

    mean_D: np.ndarray
    variance_D: np.ndarray

    def bias(self, target_D: np.ndarray) -> float:
        """Distance of the mean from the target after the best rescaling, which a learning rate would do, as a share
        of the target's length."""
        scale = self.mean_D @ target_D / (self.mean_D @ self.mean_D)
        return float(np.linalg.norm(scale * self.mean_D - target_D) / np.linalg.norm(target_D))

    def noise_to_signal(self, part: slice, target_D: np.ndarray) -> float:
        """Root of the summed variance over the mean's component along the target: squared, groups needed for a
        signal as large as its noise. Infinite where the mean does not point along the target at all."""
        along = self.mean_D[part] @ target_D[part] / np.linalg.norm(target_D[part])
        return math.sqrt(self.variance_D[part].sum()) / along if along > 1e-12 else math.inf

    def degrees_off(self, part: slice, target_D: np.ndarray) -> float:
        """Angle between the mean and the target: the bias that no learning rate removes."""
        mean_D, target_D = self.mean_D[part], target_D[part]
        cosine = mean_D @ target_D / max(np.linalg.norm(mean_D) * np.linalg.norm(target_D), 1e-300)
        return math.degrees(math.acos(min(1.0, max(-1.0, cosine))))


def by(rules: AdvantageConfig) -> CreditOf:
    """The credit a group gets by these rules."""
    return lambda rewards_G, called_G: credit_group(rewards_G, called_G, rules).credit_G


def estimator(bandit: Bandit, credit_of: CreditOf, group_size: int) -> Estimator:
    """Mean and variance of 1/G sum over siblings and segments of credit * score, over every group that can happen."""
    mean_D, square_D = 0.0, 0.0
    for share, outcomes in bandit.task_kinds():
        outcomes = [outcome for outcome in outcomes if outcome.probability > 0]
        for members in combinations_with_replacement(range(len(outcomes)), group_size):
            group = [outcomes[i] for i in members]
            probability = share * _orderings(members) * math.prod(outcome.probability for outcome in group)
            gradient_D = _group_gradient(group, credit_of)
            mean_D += probability * gradient_D
            square_D += probability * gradient_D**2
    return Estimator(mean_D, square_D - mean_D**2)


def _group_gradient(group: Sequence[Outcome], credit_of: CreditOf) -> np.ndarray:
    """What one group contributes: each sibling's scores by its segments' credit, averaged over siblings. D."""
    rewards_G = [SegmentRewards(outcome.sampling, outcome.reasoning, breakdown={}) for outcome in group]
    pairs = zip(credit_of(rewards_G, [outcome.called for outcome in group]), group, strict=True)
    return sum(own.sampling * o.look_score_D + own.reasoning * o.answer_score_D for own, o in pairs) / len(group)


def _orderings(members: tuple[int, ...]) -> int:
    """In how many orders a multiset of siblings can be drawn."""
    return math.factorial(len(members)) // math.prod(math.factorial(n) for n in Counter(members).values())


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


WORLDS = {
    "in agreement": Bandit(),
    "lucky answers": Bandit(options=2),
    "hard answers": Bandit(read_logit=-0.4),
    "wrong labels": Bandit(wrong_labels=0.5),
}
RULES = {
    "grpo": AdvantageConfig(method="grpo"),
    "gdpo": AdvantageConfig(method="gdpo"),
    "sd_grpo": AdvantageConfig(),
    "sd_grpo, cross_credit 0.25": AdvantageConfig(cross_credit=0.25),
    "sd_grpo, cross_credit 1": AdvantageConfig(cross_credit=1.0),
    "grpo, scale none": AdvantageConfig(method="grpo", scale="none"),
    "sd_grpo, scale none": AdvantageConfig(scale="none"),
    "sd_grpo, cross_credit 1, scale none": AdvantageConfig(cross_credit=1.0, scale="none"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One credit rule in one world, against the gradient of E[R_samp + R_reason]."""

    world: str
    rules: str
    bias: float  # of the mean gradient at its best scale, as a share of the true one; all parameters together
    look_degrees: float
    look_noise: float
    answer_noise: float


def measure(group_size: int) -> list[Row]:
    """Every credit rule in every world."""
    rows = []
    for world, bandit in WORLDS.items():
        target_D = sum(bandit.objective_gradients())
        for name, rules in RULES.items():
            found = estimator(bandit, by(rules), group_size)
            noises = [found.noise_to_signal(part, target_D) for part in (LOOK, ANSWER)]
            rows.append(Row(world, name, found.bias(target_D), found.degrees_off(LOOK, target_D), *noises))
    return rows


def table(rows: Sequence[Row]) -> Iterator[Sequence[str]]:
    """Cells of the table, row by row."""
    for row in rows:
        numbers = (row.bias, row.look_degrees, row.look_noise, row.answer_noise)
        yield row.world, row.rules, *(f"{number:.2f}" for number in numbers)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars: how much either segment's gradient scatters, per world and rule."""
    from matplotlib.figure import Figure  # of the dev extra

    shown = [name for name in RULES if "scale" not in name]
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, attribute, title in zip(
        panels, ("look_noise", "answer_noise"), ("parameters of the look", "parameters of the answer"), strict=True
    ):
        for i, name in enumerate(shown):
            heights = [getattr(row, attribute) for row in rows if row.rules == name]
            places = np.arange(len(WORLDS)) + (i - (len(shown) - 1) / 2) * 0.16
            axes.bar(places, heights, width=0.15, label=name, color=COLOURS[name])
        axes.set_xticks(range(len(WORLDS)), list(WORLDS))
        axes.set_title(f"noise / signal, {title}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False, fontsize=9
    )
    figure.savefig(path, dpi=150)


COLOURS = {
    "grpo": "#D55E00",
    "gdpo": "#E69F00",
    "sd_grpo": "#0072B2",
    "sd_grpo, cross_credit 0.25": "#56B4E9",
    "sd_grpo, cross_credit 1": "#009E73",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group-size", type=int, default=GROUP_SIZE, help=f"G (default {GROUP_SIZE})")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the figure")
    options = parser.parse_args()
    measured = measure(options.group_size)
    print_table(HEADINGS, table(measured))
    if options.plot:
        plot(measured, options.plot)


HEADINGS = ("world", "rules", "bias", "look: degrees off", "look: noise / signal", "answer: noise / signal")

if __name__ == "__main__":
    main()
