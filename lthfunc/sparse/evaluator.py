"""Evaluations on the sparse engine: the network in evaluation mode, many examples at a time."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import torch
from torch import Tensor

from lthfunc.sparse.capture import captured
from lthfunc.sparse.program import Epilogue, Lowered, Stored, lower
from lthfunc.sparse.python_losses import OutputsLoss
from lthfunc.sparse.thread_tuner import ThreadTuners
from lthfunc.sparse.tile_buffers import LANES, VECTOR_BYTES
from lthfunc.sparse.workspace import Workspace
from lthfunc.training.engines.interface import Network, Work, device_of
from lthfunc.training.evaluation import Evaluation, evaluate
from lthfunc.training.losses import accuracy, cross_entropy
from lthfunc.training.steps import Metrics
from lthfunc.training.user_functions import checked_loss
from lthfunc.trees.packed_states import PackedState, unpack_state
from lthfunc.trees.types import Batch, Masks, Split

#: Examples measured at a time, and bytes of activations that they may take.
_CHUNK, _BYTES = 512, 64 * 2**20


class Evaluator(threading.local):
    """Evaluates networks; keeps the last program, since looks at a training see the same survivors again and again, or
    as many others."""

    def __init__(self, work: Work, tuners: ThreadTuners) -> None:
        self._work, self._tuners = work, tuners
        self._loss, self._metric = OutputsLoss(work), checked_loss("metric", work.metric)
        self._counts = work.loss is cross_entropy and work.metric is accuracy
        self._last: tuple[Lowered, Stored, Workspace] | None = None

    def quality(self, network: Network, split: Split) -> Evaluation:
        """Mean loss and accuracy over a split."""
        workspace = self._workspace_for(network, split)
        chunk, tuner = workspace.program.batch, self._tuners.of(torch.get_num_threads())

        def metrics_of(batch: Batch) -> Metrics:
            x, y = batch
            workspace.totals.zero_()
            with tuner.running():
                workspace.run(x[None], y[None])
            if self._counts:
                loss, hits = workspace.totals
                return {"loss": loss, "accuracy": hits / y.numel()}
            outputs = workspace.program.rebuilt(workspace.handed_out(len(x)))
            return {"loss": self._loss(outputs, y, x), "accuracy": self._metric(outputs, y)}

        (quality,) = evaluate(metrics_of, split, device_of(network.params), chunk)
        return quality

    def _workspace_for(self, network: Network, split: Split) -> Workspace:
        params, buffers = network.params, network.buffers
        given = network.positions if isinstance(network, PackedState) else {}
        masks = {name: leaf != 0 for name, leaf in params.items() if leaf.ndim > 1 and name not in given}
        stored = Stored(tuple(split.x.shape[1:]), split.x.dtype, self._work.scale)
        if self._last is not None and self._last[1] == stored and self._last[0].program.fits(buffers):
            lowered, _, kept = self._last
            fits = given.keys() <= lowered.program.positions.keys() <= masks.keys() | given.keys()
            if fits and (_is_covered(masks, given, lowered) or lowered.move_to({**given, **_places(masks, lowered)})):
                workspace = kept.loaded(lowered.program, params, buffers)
                self._last = lowered, stored, workspace
                return workspace
        chunk = min(_CHUNK, max(LANES, len(split.x)))
        graph = captured(self._work.model, stored.shape, training=False)
        epilogue = Epilogue("cross_entropy" if self._counts else None, gradients=False)
        while True:
            lowered = lower(
                graph, params, buffers, masks, batch=chunk, stored=stored, epilogue=epilogue, positions=given
            )
            if lowered.program.code.vectors * VECTOR_BYTES <= _BYTES or chunk <= LANES:
                break
            chunk = max(LANES, chunk // 2)
        if isinstance(network, PackedState) and not given.keys() <= lowered.program.positions.keys():
            return self._workspace_for(unpack_state(network), split)  # a masked leaf has no list in this mode
        workspace = Workspace(lowered.program, params, buffers)
        self._last = lowered, stored, workspace
        return workspace


#: Fewer survivors than this share of a program's are not worth its time: zeros are computed with.
_FILLED = 0.98


def _is_covered(masks: Masks, given: Mapping[str, Tensor], lowered: Lowered) -> bool:
    """Whether all these survivors are among the program's, and not far fewer. given: places of others, the same."""
    known = lowered.program.positions
    if any(places is not known[name] and not torch.equal(places, known[name]) for name, places in given.items()):
        return False
    ours = theirs = 0
    for name in known.keys() - given.keys():
        positions, mask = known[name], masks[name].flatten()
        inside, count = int(mask.index_select(0, positions).sum()), int(mask.sum())
        if inside < count:
            return False
        ours, theirs = ours + len(positions), theirs + count
    return theirs >= _FILLED * ours


def _places(masks: Masks, lowered: Lowered) -> dict[str, Tensor]:
    """Where these survivors lie. Those that are still zero, as weights that grew are, are missing in the masks: first
    places of other zeros stand for a few of them, so that the program's number is reached."""
    found = {}
    for name in masks.keys() & lowered.program.positions.keys():
        positions, mask = lowered.program.positions[name], masks[name].flatten()
        places, count = mask.nonzero().flatten(), len(positions)
        if _FILLED * count <= len(places) < count:
            free = mask.logical_not().nonzero().flatten()[: count - len(places)]
            places = torch.cat([places, free]).sort().values
        found[name] = places
    return found
