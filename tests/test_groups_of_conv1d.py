"""Groups of GPT-2's own layers, whose weights are (inputs, outputs)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lthfunc as lf

Group = lf.DependencyGroup


class _Layers(nn.Module):
    """A block of GPT-2, of layers that are given."""

    def __init__(self, layer: Callable[[int, int], nn.Module], heads: int = 3, width: int = 12) -> None:
        super().__init__()
        self.table, self.norm, self.heads = nn.Embedding(7, width), nn.LayerNorm(width), heads
        self.attention, self.out = layer(3 * width, width), layer(width, width)
        self.up, self.down, self.head = layer(20, width), layer(width, 20), nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x)
        query, keys, values = (
            each.unflatten(2, (self.heads, -1)).transpose(1, 2) for each in self.attention(self.norm(x)).chunk(3, 2)
        )
        seen = nn.functional.scaled_dot_product_attention(query, keys, values, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        out: Tensor = self.head(x + self.down(nn.functional.gelu(self.up(x))))
        return out


def test_conv1d_of_transformers_has_the_groups_of_a_linear_layer() -> None:
    """Its weight is (inputs, outputs): axes change places, and so do the places of the smaller network."""
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    networks = [_Layers(conv1d), _Layers(lambda outputs, inputs: nn.Linear(inputs, outputs))]
    models = [lf.from_module(each, tokens=True, name="block") for each in networks]
    turned, plain = (lf.dependency_groups(model, (6,)) for model in models)
    layers = {f"{name}.weight" for name in ("attention", "out", "up", "down")}
    other = {(name, axis): (name, 1 - axis if name in layers else axis) for name in layers for axis in (0, 1)}

    def places(groups: tuple[Group, ...], names: dict[tuple[str, int], tuple[str, int]]) -> list[Any]:
        found = [
            (group.kind, sorted((names.get(part[:2], part[:2]), part.indices.tolist()) for part in group.parts))
            for group in groups
        ]
        return sorted(found)

    assert Counter(group.kind for group in turned) == {"heads": 3, "residual": 12, "units": 20}
    assert places(turned, other) == places(plain, {})
    pruned = lf.prune_groups(turned, density=0.5)(lf.init(models[0]))
    small = lf.compact(models[0], pruned, (6,))
    x = torch.randint(0, 7, (5, 6))
    assert small.params["up.weight"].numel() < 12 * 20 / 2
    state = pruned._replace(params=small.params, buffers=small.buffers, masks=small.masks)
    expected = lf.to_module(lf.ticket(pruned), models[0]).eval()(x)
    torch.testing.assert_close(lf.to_module(lf.ticket(state), small.model).eval()(x), expected)
