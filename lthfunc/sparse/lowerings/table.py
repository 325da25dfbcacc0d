"""The rules by operation. An operation that is missing here has none, and its network uses another engine."""

from __future__ import annotations

import torch

from lthfunc.sparse.kernels.instructions import POINTWISE
from lthfunc.sparse.lowerings import layers, normalisation, pointwise, pooling, shapes
from lthfunc.sparse.lowerings.interface import Lowering

_aten = torch.ops.aten

LOWERINGS: dict[object, Lowering] = {
    _aten.linear.default: layers.linear,
    _aten.conv2d.default: layers.convolution,
    _aten.conv2d.padding: layers.convolution,
    _aten.max_pool2d.default: pooling.max_pool,
    _aten.avg_pool2d.default: pooling.average_pool,
    _aten.adaptive_avg_pool2d.default: pooling.adaptive_average_pool,
    _aten.mean.dim: pooling.mean,
    _aten.batch_norm.default: normalisation.batch_norm,
    _aten.group_norm.default: normalisation.group_norm,
    _aten.layer_norm.default: normalisation.layer_norm,
    _aten.dropout.default: pointwise.dropout,
    _aten.dropout_.default: pointwise.dropout,
    _aten.log_softmax.int: pointwise.log_softmax,
    _aten.relu.default: pointwise.relu,
    _aten.relu_.default: pointwise.relu,
    _aten.add.Tensor: pointwise.add,
    _aten.add_.Tensor: pointwise.add,
    _aten.mul.Tensor: pointwise.multiply,
    _aten.div.Tensor: pointwise.divide,
    _aten.flatten.using_ints: shapes.flatten,
    _aten.view.default: shapes.reshape,
    _aten.reshape.default: shapes.reshape,
    _aten.slice.Tensor: shapes.part,
    _aten.pad.default: shapes.pad,
    _aten.constant_pad_nd.default: shapes.pad,
    _aten.cat.default: shapes.concatenate,
    _aten.alias.default: shapes.same,
    _aten.contiguous.default: shapes.same,
    _aten.clone.default: shapes.same,
}
LOWERINGS.update({
    getattr(_aten, name).default: pointwise.activation(kind)
    for kind in POINTWISE if kind not in ("relu", "scale")
    for name in (kind, f"{kind}_") if hasattr(_aten, name)
})  # fmt: skip
