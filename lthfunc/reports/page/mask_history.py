"""The masks of all rounds of a seed in one tree: masks nest, so the round that pruned a weight says everything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lthfunc.errors import UserError
from lthfunc.experiments.iterative import TICKET
from lthfunc.experiments.records import Record
from lthfunc.reports.spacing import spread_out
from lthfunc.runs.folder import MASKS, PARAMS, training_folder
from lthfunc.runs.manifests import load_checked

#: Marks a weight that no round pruned.
ALIVE = 255
#: The most rounds that uint8 can number, and the bins of a histogram.
_MOST_ROUNDS, _BINS = 254, 61
#: Weights per step of the comparison of all rounds with all.
_CHUNK = 1 << 18


class Histogram(NamedTuple):
    """Of a layer's surviving weights. counts: a row per round. reach: the bins divide [-reach, reach] evenly."""

    counts: list[list[int]]
    reach: float


class Patterns(NamedTuple):
    """rounds: their numbers. densities: in per cent. pruned: uint8, for each weight the index of the round that pruned

    it, or ALIVE. histograms: of surviving trained weights, by layer; empty where they weren't read.
    """

    seed: int
    rounds: list[int]
    densities: list[float]
    pruned: dict[str, Tensor]
    histograms: dict[str, Histogram]

    def masks(self, place: int) -> dict[str, Tensor]:
        """The masks of a round, by its index in `rounds`."""
        return {name: leaf > place for name, leaf in self.pruned.items()}


def read_patterns(
    folder: Path, records: Sequence[Record], seed: int, *, weights: bool, on_read: Callable[[], None]
) -> tuple[Patterns | None, list[str]]:
    """(the masks of a seed's tickets, lines about what could not be read). on_read: called after each round."""
    densities = {
        item["round"]: 100 * item["density"] for item in records if item["seed"] == seed and item["variant"] == TICKET
    }
    pruned: dict[str, Tensor] = {}
    trained: dict[str, list[Tensor]] = {}
    found: list[int] = []
    missing: list[str] = []
    for number in spread_out(list(densities), _MOST_ROUNDS):
        place = training_folder(folder, seed, number, TICKET)
        try:
            masks: dict[str, Tensor] = load_checked(place, MASKS)[0].get("masks", {})
            params: dict[str, Tensor] = load_checked(place, PARAMS)[0].get("params", {}) if weights else {}
            _add(pruned, masks, len(found))
        except UserError as error:
            missing.append(f"masks and weights of seed {seed}, round {number}: {error}")
            continue
        finally:
            on_read()
        found.append(number)
        for name, mask in masks.items():
            if name in params:
                trained.setdefault(name, []).append(params[name][mask].float())
    if not found:
        return None, missing
    histograms = {name: _histogram(values) for name, values in trained.items() if len(values) == len(found)}
    return Patterns(seed, found, [densities[number] for number in found], pruned, histograms), missing


def _add(pruned: dict[str, Tensor], masks: Mapping[str, Tensor], place: int) -> None:
    if place and masks.keys() != pruned.keys():
        raise UserError("its masks belong to other layers than the previous round's")
    for name, mask in masks.items():
        if place and mask.shape != pruned[name].shape:
            raise UserError(f"the mask of {name} has another shape than in the previous round")
        if place and bool((mask & (pruned[name] != ALIVE)).any()):
            raise UserError(f"the mask of {name} keeps weights that an earlier round had pruned")
    for name, mask in masks.items():
        known = pruned.get(name)
        if known is None:
            known = torch.full(mask.shape, ALIVE, dtype=torch.uint8)
        gone = ~mask & (known == ALIVE)
        pruned[name] = known.masked_fill(gone, place)


def _histogram(values: Sequence[Tensor]) -> Histogram:
    reach = max((float(each.abs().max()) for each in values if each.numel()), default=0.0) or 1.0
    counts = [torch.histc(each, _BINS, -reach, reach).long().tolist() for each in values]
    return Histogram(counts, reach)


def pixel_shares(pruned: Tensor, shape: Sequence[int], rounds: int) -> Tensor:
    """How many of each input's weights survive, (rounds, height, width) in [0, 1]: what a first layer looks at.

    pruned: of a linear layer, (outputs, channels × height × width).
    """
    channels, height, width = shape
    cubes = pruned.reshape(-1, channels, height, width)
    alive = [(cubes > place).float().mean(dim=(0, 1)) for place in range(rounds)]
    return torch.stack(alive)


class Overlap(NamedTuple):
    """Of several seeds' masks. rounds: shared by all, by number; densities: of the first seed in them, in per cent.

    same: mean Jaccard index of two seeds' masks, a number per round; chance: what masks drawn at random with the same
    layers' densities would have. between: of round i of a seed and round j of another, at most eleven rounds of them
    (`shown`).
    """

    rounds: list[int]
    densities: list[float]
    same: list[float]
    chance: list[float]
    shown: list[int]
    between: list[list[float]]


def overlap_of(patterns: Sequence[Patterns]) -> Overlap | None:
    """Jaccard's index (weights in both masks / weights in either) between seeds; None for a single seed."""
    if len(patterns) < 2:
        return None
    rounds = [number for number in patterns[0].rounds if all(number in each.rounds for each in patterns)]
    if not rounds:
        return None
    places = [[each.rounds.index(number) for number in rounds] for each in patterns]
    both = _intersections(patterns, places)  # (seeds, rounds, seeds, rounds)
    count = len(rounds)
    sizes = torch.stack([both[s, range(count), s, range(count)] for s in range(len(patterns))])
    either = sizes[:, :, None, None] + sizes[None, None] - both
    index = torch.where(either > 0, both / either.clamp(min=1), 1.0)
    pairs = list(combinations(range(len(patterns)), 2))
    mean = torch.stack([(index[a, :, b] + index[b, :, a]) / 2 for a, b in pairs]).mean(0)
    shown = spread_out(list(range(count)), 11)
    densities = [patterns[0].densities[at] for at in places[0]]
    return Overlap(
        rounds, densities, mean.diagonal().tolist(), _by_chance(patterns[0], places[0]), [rounds[i] for i in shown],
        mean[shown][:, shown].tolist(),
    )  # fmt: skip


def _intersections(patterns: Sequence[Patterns], places: Sequence[Sequence[int]]) -> Tensor:
    count = len(places[0])
    total = torch.zeros(len(patterns) * count, len(patterns) * count, dtype=torch.float64)
    for name in patterns[0].pruned:
        leaves = [each.pruned[name].flatten() for each in patterns]
        for begin in range(0, len(leaves[0]), _CHUNK):
            parts = [leaf[begin : begin + _CHUNK] for leaf in leaves]
            masks = torch.stack([part > place for part, mine in zip(parts, places, strict=True) for place in mine])
            total += (masks.float() @ masks.float().T).double()  # counts below 2^24 are exact
    return total.reshape(len(patterns), count, len(patterns), count)


def _by_chance(pattern: Patterns, places: Sequence[int]) -> list[float]:
    layers = pattern.pruned.values()
    sizes = torch.tensor([float(leaf.numel()) for leaf in layers], dtype=torch.float64)
    kept = torch.tensor([[int((leaf > place).sum()) for leaf in layers] for place in places], dtype=torch.float64)
    both = (kept**2 / sizes).sum(1)
    either = 2 * kept.sum(1) - both
    return torch.where(either > 0, both / either, 1.0).tolist()
