"""Several token sequences in one row without padding; those that begin alike share their beginning.

A row is a list of trees, one after the other. A tree is the tokens that its sequences have in common, then each
sequence's own: [shared | branch 1 | … | branch G]. A token sees itself and what comes before it in its own sequence;
branches do not see each other. A sequence that shares nothing is a tree with one branch and no shared tokens.

What a token's hidden state is then depends on nothing else in its row, so that log-probs and gradients are those of the
sequences one by one. The idea is that of PrefixGrouper (arXiv:2506.05433) and of tree attention for training.

Legend: T tokens of a row · G branches of a tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch


@dataclass(frozen=True, slots=True)
class Tree:
    """Lengths, in tokens, of sequences that share their beginning."""

    shared: int
    branches: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Places that it takes in the row."""
        return self.shared + sum(self.branches)


Packing: TypeAlias = tuple[Tree, ...]


def starts(packing: Sequence[Tree]) -> Iterator[int]:
    """The place in the row at which each tree starts."""
    place = 0
    for tree in packing:
        yield place
        place += tree.tokens


def visible(packing: Sequence[Tree], device: torch.device | str = "cpu") -> torch.Tensor:
    """(T, T) bool: whether the token of a row of the table sees that of a column."""
    tree_T, branch_T = owners(packing, device)
    return (
        sees(tree_T[:, None], branch_T[:, None], tree_T[None], branch_T[None])
        & torch.ones(len(tree_T), len(tree_T), dtype=torch.bool, device=device).tril()
    )


def owners(packing: Sequence[Tree], device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every token (T): the tree it stands in, and the branch, counted over the row; -1 where it is shared."""
    tree_T, branch_T, branches = [], [], 0
    for index, tree in enumerate(packing):
        tree_T += [index] * tree.tokens
        branch_T += [-1] * tree.shared
        for length in tree.branches:
            branch_T += [branches] * length
            branches += 1
    return torch.tensor(tree_T, device=device), torch.tensor(branch_T, device=device)


def sees(
    tree: torch.Tensor, branch: torch.Tensor, other_tree: torch.Tensor, other_branch: torch.Tensor
) -> torch.Tensor:
    """Whether a token may see another one that does not come after it."""
    return (tree == other_tree) & ((branch == other_branch) | (other_branch == -1))
