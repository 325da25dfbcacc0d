"""BatchNorm over the examples of all ranks: one exchange of two numbers per channel, and one of their gradients."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lthfunc.distributed.collectives import Collectives
from lthfunc.distributed.data_parallel import differentiable_sum
from lthfunc.trees.model import Model


def with_sync_batchnorm(model: Model, collectives: Collectives) -> Model:
    """The model whose BatchNorm layers see, in training, the batches of all ranks as one. Names and values stay."""
    if collectives.world_size == 1:
        return model
    training = copy.deepcopy(model.training)
    for name, part in list(training.named_modules()):
        if isinstance(part, _BatchNorm) and (part.training or not part.track_running_stats):
            owner, _, own = name.rpartition(".")
            setattr(training.get_submodule(owner), own, _Synchronised(part, collectives))
    return model._replace(training=training)


class _Synchronised(nn.Module):
    """A BatchNorm layer with the parameters and buffers of another. Inputs: (n, channels, ...), n on every rank."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, layer: _BatchNorm, collectives: Collectives) -> None:
        super().__init__()
        for name, parameter in layer.named_parameters():
            self.register_parameter(name, parameter)
        for name, buffer in layer.named_buffers():
            self.register_buffer(name, buffer)
        self._collectives, self._eps, self._momentum = collectives, layer.eps, layer.momentum
        self._affine, self._tracks = layer.affine, layer.track_running_stats

    def forward(self, x: Tensor) -> Tensor:
        ranks = self._collectives.world_size
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        axes, shape = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
        mean = wide.mean(axes)
        variance = (wide - mean.view(shape)).square().mean(axes)
        # Squares of means are small where they are taken from a mean known beforehand, so little is lost in them.
        known = self.running_mean.detach() if self._tracks else torch.zeros_like(mean)
        off = mean - known
        both = torch.cat([off, variance + off.square()])
        off, square = (differentiable_sum(self._collectives, both) / ranks).chunk(2)
        mean, variance = known + off, square - off.square()
        if self._tracks:
            self._track(mean.detach(), variance.detach(), ranks * wide.numel() // x.shape[1])
        normal = (wide - mean.view(shape)) * (variance + self._eps).rsqrt().view(shape)
        if self._affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        self.num_batches_tracked = self.num_batches_tracked + 1
        share = 1 / self.num_batches_tracked.to(mean.dtype) if self._momentum is None else self._momentum
        unbiased = variance * (count / (count - 1))
        self.running_mean = self.running_mean + share * (mean - self.running_mean)
        self.running_var = self.running_var + share * (unbiased - self.running_var)
