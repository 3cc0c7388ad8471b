"""Every credit rule on a bandit small enough to enumerate: what its gradient is on average, and how much it scatters.

    python -m benchmarks.learning.bandit                         # the table, in two minutes
    python -m benchmarks.learning.bandit --plot bandit.png       # and the figure

The policy is a table of numbers: for each look that it may take, the logit of asking for it at all and the logits of
three windows; and the logit of reading the answer off the evidence where it is seen. All groups of G siblings are
enumerated with their probabilities, so that expectation and variance of an estimator are sums, not samples; where there
are too many groups (MOST_GROUPS), as many are drawn as SAMPLED_GROUPS says, and the table says so.

Legend: G siblings of one task · D parameters of the policy (for each look: call, three windows; then read).
"""

from __future__ import annotations

import argparse
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from statistics import fmean

import numpy as np

from benchmarks.tables import print_table
from rl.algorithm.advantages import Credit, credit_group
from rl.config.algorithm import AdvantageConfig
from rl.trajectory import Segment, SegmentRewards

NUM_WINDOWS = 3
CreditOf = Callable[[Sequence[SegmentRewards], Sequence[bool]], Sequence[Credit]]  # (rewards_G, called_G) -> credit_G
LOOK, ANSWER = slice(0, -1), slice(-1, None)  # parameters of either segment
MOST_GROUPS = 30_000  # that are enumerated
SAMPLED_GROUPS = 20_000
TRAJECTORIES = 32  # of a step, as in the runs: noise is that of as many groups as they make


@dataclass(frozen=True, slots=True)
class Outcome:
    """One way an episode can go."""

    probability: float
    calls: tuple[float, ...]  # the reward of each look; R_samp is their mean
    reasoning: float  # R_reason
    look_scores: tuple[np.ndarray, ...]  # gradient of the log-probability of each look's tokens. D each
    answer_score_D: np.ndarray  # of the last turn's: of declining a further look, and of the answer

    @property
    def sampling(self) -> float:
        """R_samp."""
        return fmean(self.calls) if self.calls else 0.0

    @property
    def called(self) -> bool:
        """Whether it looked at all."""
        return bool(self.calls)

    @property
    def score_D(self) -> np.ndarray:
        """Gradient of the log-probability of all of it."""
        return sum(self.look_scores, self.answer_score_D)


@dataclass(frozen=True, slots=True)
class Bandit:
    """A world and a policy in it.

    A window shows the evidence with a probability of its own. Who has seen it reports it with the probability of
    reading, else another option; who has not guesses. Further looks have logits of their own.
    """

    call_logit: float = 0.4
    window_logits: tuple[float, ...] = (0.3, -0.2, 0.1)
    read_logit: float = 1.5
    window_rewards: tuple[float, ...] = (0.1, 0.5, 0.9)
    shows_evidence: tuple[float, ...] = (0.0, 0.5, 1.0)  # by window
    options: int = 4  # of an answer; a guess is right once in so many
    wrong_labels: float = 0.0  # share of tasks whose reference answer is wrong
    looks: int = 1  # that may be taken
    again_logit: float = 0.2  # of asking for a further one

    def task_kinds(self) -> list[tuple[float, list[Outcome]]]:
        """(probability, outcomes) of tasks that are annotated right and wrong: siblings share the annotation."""
        kinds = [(1 - self.wrong_labels, False), (self.wrong_labels, True)]
        return [(share, list(self._outcomes(mislabelled))) for share, mislabelled in kinds if share > 0]

    def objective_gradients(self) -> tuple[np.ndarray, np.ndarray]:
        """Analytic gradients of E[R_samp] and E[R_reason]: sum over outcomes of p R grad log p. D each."""
        scored = [(share * o.probability, o) for share, outcomes in self.task_kinds() for o in outcomes]
        return sum(p * o.sampling * o.score_D for p, o in scored), sum(p * o.reasoning * o.score_D for p, o in scored)

    def _outcomes(self, mislabelled: bool) -> Iterator[Outcome]:
        for probability, calls, look_scores, seen, declined_D in self._looked():
            answers = self._reading(mislabelled) if seen else self._guess()
            for right, chance, answer_D in answers:
                yield Outcome(probability * chance, calls, right, look_scores, declined_D + answer_D)

    def _looked(
        self, calls: tuple[float, ...] = (), scores: tuple[np.ndarray, ...] = (), seen: bool = False
    ) -> Iterator[tuple[float, tuple[float, ...], tuple[np.ndarray, ...], bool, np.ndarray]]:
        """All ways to look from here on: probability, rewards, scores, whether the evidence was seen, and the score of
        declining the next look."""
        turn = len(calls)
        if turn == self.looks:
            yield 1.0, calls, scores, seen, self._vector(turn)
            return
        call = _sigmoid(self.again_logit if turn else self.call_logit)
        yield 1 - call, calls, scores, seen, self._vector(turn, call=-call)
        windows = np.exp(self.window_logits) / np.exp(self.window_logits).sum()
        for k, (window, reward, shows) in enumerate(
            zip(windows, self.window_rewards, self.shows_evidence, strict=True)
        ):
            look_D = self._vector(turn, call=1 - call, windows=np.eye(NUM_WINDOWS)[k] - windows)
            chances = [(True, 1.0)] if seen else [(True, shows), (False, 1 - shows)]
            for sees, chance in chances:
                for probability, *rest in self._looked((*calls, reward), (*scores, look_D), sees):
                    yield call * window * chance * probability, *rest

    def _guess(self) -> list[tuple[float, float, np.ndarray]]:
        """(R_reason, probability, score) of who has seen nothing."""
        return [(1.0, 1 / self.options, self._vector(0)), (0.0, 1 - 1 / self.options, self._vector(0))]

    def _reading(self, mislabelled: bool) -> list[tuple[float, float, np.ndarray]]:
        """Likewise, of who has seen the evidence."""
        read = _sigmoid(self.read_logit)
        read_D, misread_D = self._vector(0, read=1 - read), self._vector(0, read=-read)
        if not mislabelled:
            return [(1.0, read, read_D), (0.0, 1 - read, misread_D)]
        slip = (1 - read) / (self.options - 1)  # onto one particular wrong option
        return [(0.0, read, read_D), (1.0, slip, misread_D), (0.0, 1 - read - slip, misread_D)]

    def _vector(
        self, turn: int, call: float = 0.0, windows: Sequence[float] = (0.0,) * NUM_WINDOWS, read: float = 0.0
    ) -> np.ndarray:
        """D numbers: of a turn's look, and of the reading."""
        of_looks = np.zeros((self.looks, 1 + NUM_WINDOWS))
        if turn < self.looks:
            of_looks[turn] = (call, *windows)
        return np.array([*of_looks.ravel(), read])


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
    """Mean and variance of 1/G sum over siblings and segments of credit * score: over every group that can happen, or,
    where those are too many, over groups drawn from them."""
    return (
        _enumerated(bandit, credit_of, group_size)
        if enumerable(bandit, group_size)
        else _drawn(bandit, credit_of, group_size)
    )


def enumerable(bandit: Bandit, group_size: int) -> bool:
    """Whether all groups of this size are few enough."""
    sizes = [sum(o.probability > 0 for o in outcomes) for _, outcomes in bandit.task_kinds()]
    return sum(math.comb(size + group_size - 1, group_size) for size in sizes) <= MOST_GROUPS


def _drawn(bandit: Bandit, credit_of: CreditOf, group_size: int) -> Estimator:
    rng, kinds = np.random.default_rng(0), bandit.task_kinds()
    drawn_K = rng.multinomial(SAMPLED_GROUPS, [share for share, _ in kinds])
    gradients_ND = []
    for number, (_, outcomes) in zip(drawn_K, kinds, strict=True):
        chances = [outcome.probability for outcome in outcomes]
        for members in rng.choice(len(outcomes), size=(number, group_size), p=chances):
            gradients_ND.append(_group_gradient([outcomes[i] for i in members], credit_of))
    return Estimator(np.mean(gradients_ND, axis=0), np.var(gradients_ND, axis=0))


def _enumerated(bandit: Bandit, credit_of: CreditOf, group_size: int) -> Estimator:
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
    rewards_G = [SegmentRewards(outcome.sampling, outcome.reasoning, {}, outcome.calls) for outcome in group]
    pairs = zip(credit_of(rewards_G, [outcome.called for outcome in group]), group, strict=True)
    return sum(_gradient(own, outcome) for own, outcome in pairs) / len(group)


def _gradient(own: Credit, outcome: Outcome) -> np.ndarray:
    looks = (own.of(Segment.SAMPLING, k) * score_D for k, score_D in enumerate(outcome.look_scores))
    return sum(looks, own.reasoning * outcome.answer_score_D)


def _orderings(members: tuple[int, ...]) -> int:
    """In how many orders a multiset of siblings can be drawn."""
    return math.factorial(len(members)) // math.prod(math.factorial(n) for n in Counter(members).values())


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


@dataclass(frozen=True, slots=True)
class Regime:
    """A world, and how many siblings a group has: the regimes of the runs."""

    bandit: Bandit
    group_size: int = 8


REGIMES = {
    "no wrong labels": Regime(Bandit()),
    "10 % wrong labels: the base": Regime(Bandit(wrong_labels=0.1)),
    "30 % wrong labels": Regime(Bandit(wrong_labels=0.3)),
    "lucky answers": Regime(Bandit(options=2, wrong_labels=0.1)),
    "4 siblings": Regime(Bandit(wrong_labels=0.1), 4),
    "16 siblings": Regime(Bandit(wrong_labels=0.1), 16),
    "two looks": Regime(Bandit(wrong_labels=0.1, looks=2)),
}
RULES = {
    "grpo": AdvantageConfig(method="grpo"),
    "gdpo": AdvantageConfig(method="gdpo"),
    "sd_grpo": AdvantageConfig(),
    "sd_grpo, cross_credit 0.5": AdvantageConfig(cross_credit=0.5),  # a schedule from 1 to 0, half way
    "sd_grpo, cross_credit 1": AdvantageConfig(cross_credit=1.0),  # and at its beginning
    "sd_grpo, calls each": AdvantageConfig(calls="each"),
    "grpo, scale none": AdvantageConfig(method="grpo", scale="none"),
    "sd_grpo, scale none": AdvantageConfig(scale="none"),
    "sd_grpo, cross_credit 1, scale none": AdvantageConfig(cross_credit=1.0, scale="none"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One credit rule in one regime, against the gradient of E[R_samp + R_reason]."""

    regime: str
    rules: str
    is_exact: bool  # summed over every group; else over drawn ones
    bias: float  # of the mean gradient at its best scale, as a share of the true one; all parameters together
    look_degrees: float
    look_noise: float
    answer_noise: float


def measure(regimes: Mapping[str, Regime] = REGIMES) -> list[Row]:
    """Every credit rule in every regime where it differs from the others."""
    return [
        _measured(name, regime, rules)
        for name, regime in regimes.items()
        for rules in RULES
        if RULES[rules].calls == "together" or regime.bandit.looks > 1
    ]


def _measured(name: str, regime: Regime, rules: str) -> Row:
    target_D = sum(regime.bandit.objective_gradients())
    found = estimator(regime.bandit, by(RULES[rules]), regime.group_size)
    per_step = math.sqrt(regime.group_size / TRAJECTORIES)
    noises = [per_step * found.noise_to_signal(part, target_D) for part in (LOOK, ANSWER)]
    exact = enumerable(regime.bandit, regime.group_size)
    return Row(name, rules, exact, found.bias(target_D), found.degrees_off(LOOK, target_D), *noises)


def table(rows: Sequence[Row]) -> Iterator[Sequence[str]]:
    """Cells of the table, row by row."""
    for row in rows:
        numbers = (row.bias, row.look_degrees, row.look_noise, row.answer_noise)
        yield row.regime, row.rules, "all" if row.is_exact else "drawn", *(f"{number:.2f}" for number in numbers)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars: how much either segment's gradient scatters, per regime and rule."""
    from matplotlib.figure import Figure  # of the dev extra

    figure = Figure(figsize=(11, 5.5), layout="constrained")
    panels, regimes = figure.subplots(2, 1, sharex=True), list(dict.fromkeys(row.regime for row in rows))
    for axes, attribute, title in zip(
        panels, ("look_noise", "answer_noise"), ("parameters of the look", "parameters of the answer"), strict=True
    ):
        for i, name in enumerate(COLOURS):
            heights = {row.regime: getattr(row, attribute) for row in rows if row.rules == name}
            places = [regimes.index(regime) + (i - (len(COLOURS) - 1) / 2) * 0.14 for regime in heights]
            axes.bar(places, list(heights.values()), width=0.13, label=name, color=COLOURS[name])
        axes.set_xticks(range(len(regimes)), [textwrap.fill(regime, 18) for regime in regimes])
        axes.set_title(f"noise / signal of {TRAJECTORIES} trajectories, {title}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False, fontsize=8
    )
    figure.savefig(path, dpi=120)


COLOURS = {
    "grpo": "#D55E00",
    "gdpo": "#E69F00",
    "sd_grpo": "#0072B2",
    "sd_grpo, cross_credit 0.5": "#56B4E9",
    "sd_grpo, cross_credit 1": "#009E73",
    "sd_grpo, calls each": "#CC79A7",
}
HEADINGS = ("regime", "rules", "groups", "bias", "look: degrees off", "look: noise / signal", "answer: noise / signal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES), help="(default all)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the figure")
    options = parser.parse_args()
    measured = measure({name: REGIMES[name] for name in options.regimes})
    print_table(HEADINGS, table(measured))
    if options.plot:
        plot(measured, options.plot)


if __name__ == "__main__":
    main()
