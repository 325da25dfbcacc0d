"""The choice of the winning ticket: the sparsest round whose validation accuracy is no worse than the dense network's.

No worse, up to noise: of two equally good networks, either may be ahead by some examples. A round's difference
to the dense network is the mean over the seeds that have both, paired by seed. It may be below zero by as much as its
noise, one standard error (the rule by which Breiman et al. 1984, *Classification and regression trees*, sec. 3.4.3,
choose the smallest of several models), which is the smaller one of

- the standard error of the dense network's accuracy a on a split of n examples, sqrt(a (1 - a) / n), and
- with several seeds, the standard error of the mean difference, std / sqrt(seeds);

and an average of one example is never a loss. The first cannot be computed for metrics that are not a share of the
examples; with one seed, a round must then not be below the dense network at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from lthfunc.catalog.training import METRICS
from lthfunc.experiments.iterative import TICKET
from lthfunc.experiments.records import Record, Row, spread, summarize

#: Accuracies are means of float32 numbers.
_ROUNDING = 1e-6


class Candidate(NamedTuple):
    """A pruned round against the dense network, by validation accuracy.

    difference: by how much the round's mean accuracy is better than the dense network's (below it, where less is
    better), over the `seeds` that both have. noise: by how much it may be below zero. standard_error: of the
    difference; None with one seed.
    """

    row: Row
    difference: float
    noise: float
    standard_error: float | None
    seeds: int

    @property
    def is_loss(self) -> bool:
        """Whether the round is worse than the dense network by more than the noise."""
        return self.difference < -self.noise - _ROUNDING


class Choice(NamedTuple):
    """dense: the dense network's row. winner: the winning ticket. best: where none won, the round that came closest.

    Both are None if no round was pruned.
    """

    dense: Row | None = None
    winner: Candidate | None = None
    best: Candidate | None = None

    @property
    def winning_round(self) -> int | None:
        """The round of the winning ticket; None if no pruned round won."""
        return None if self.winner is None else self.winner.row.round


def choose(records: Sequence[Record], examples: int | None) -> Choice:
    """The winning ticket among the finished trainings of a run.

    examples: of the validation split. None: no noise is allowed for, as up to format 3 of runs.
    """
    rows = [row for row in summarize(records) if row.variant == TICKET]
    if not rows or rows[0].round != 0:
        return Choice()
    dense = _by_seed(records, 0)
    candidates = [_candidate(row, rows[0], _by_seed(records, row.round), dense, examples) for row in rows[1:]]
    winners = [each for each in candidates if not each.is_loss]
    best = max(candidates, key=lambda each: each.difference, default=None)
    return Choice(rows[0], winners[-1] if winners else None, None if winners else best)


def _candidate(
    row: Row, dense: Row, mine: dict[int, float], theirs: dict[int, float], examples: int | None
) -> Candidate:
    gain = row.scale.gain
    differences = [gain(value, theirs[seed]) for seed, value in mine.items() if seed in theirs]
    if examples is None or not differences:
        return Candidate(row, gain(row.val_accuracy.mean, dense.val_accuracy.mean), 0.0, None, len(differences))
    mean, std = spread(differences)
    standard_error = std / math.sqrt(len(differences)) if len(differences) > 1 else None
    noise = [] if standard_error is None else [standard_error]
    least = 0.0
    if _is_share_of_examples(row.metric):
        accuracy, least = dense.val_accuracy.mean, 1 / examples
        noise.append(math.sqrt(accuracy * (1 - accuracy) / examples))
    return Candidate(row, mean, max(least, min(noise, default=0.0)), standard_error, len(differences))


def _is_share_of_examples(metric: str) -> bool:
    """Whether a metric is the share of examples that a network gets right."""
    found = METRICS.find(metric)
    return found is not None and found[0].of == "classes"


def _by_seed(records: Sequence[Record], number: int) -> dict[int, float]:
    """The validation accuracies of a round's tickets, by seed."""
    return {
        item["seed"]: item["val_accuracy"] for item in records if (item["round"], item["variant"]) == (number, TICKET)
    }
