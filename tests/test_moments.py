"""Second moments of inputs and Wanda's score, against NumPy and loops over weights; moments that don't fit a layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.sparsify.activations import Moments, MomentSums, check_moments


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def made(layer: nn.Module) -> tuple[lf.Model, lf.TrainState]:
    model = lf.from_module(layer.double(), init=lf.as_built)
    return model, lf.init(model)


def second(rows: Tensor) -> Tensor:
    """The mean of x_i x̄_j over the rows, by NumPy."""
    x = rows.numpy()
    return torch.from_numpy(np.einsum("ri,rj->ij", x, x.conj()) / len(x))


def test_sums_of_rows_are_over_all_that_were_added() -> None:
    """By weight, real or complex, of several groups or one; the diagonals alone are those of the whole."""
    model, _ = made(nn.Linear(3, 2))
    parts = [drawn(1, count, 3, seed=count) for count in (4, 1)]
    complex_parts = [drawn(1, count, 3, seed=count, dtype=torch.complex64) for count in (5, 2)]
    grouped = [drawn(2, count, 3, seed=count) for count in (3, 6)]
    narrow = [drawn(1, 4, 3, seed=9, dtype=torch.float32)]
    found = []
    for diagonal in (False, True):
        sums = MomentSums(model, diagonal)
        for name, each in (("real", parts), ("complex", complex_parts), ("grouped", grouped), ("narrow", narrow)):
            for rows in each:
                sums.add(name, rows)
        found.append(sums.moments())
    whole, diagonals = found
    assert (whole.diagonal, diagonals.diagonal, Moments().diagonal) == (False, True, False)
    torch.testing.assert_close(whole["real"], second(torch.cat(parts, 1)[0]))
    torch.testing.assert_close(whole["complex"], second(torch.cat(complex_parts, 1)[0].to(torch.complex128)))
    wanted = torch.stack([second(torch.cat(grouped, 1)[group]) for group in range(2)])
    torch.testing.assert_close(whole["grouped"], wanted)
    torch.testing.assert_close(whole["narrow"], second(narrow[0][0].double()))
    assert {name: leaf.dtype for name, leaf in whole.items() if leaf.dtype != torch.float64} == {
        "complex": torch.complex128
    }
    for name, leaf in diagonals.items():
        torch.testing.assert_close(leaf, whole[name].diagonal(dim1=-2, dim2=-1).real)
        assert leaf.dtype == torch.float64


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_moments_of_a_convolution_are_those_of_its_groups(sides: int, groups: int) -> None:
    """And Wanda's score of each weight is its size times the root mean square of what it reads."""
    conv = (nn.Conv1d, nn.Conv2d)[sides - 1](4, 6, 3, groups=groups)
    model, state = made(conv)
    x = drawn(5, 4, *(6,) * sides)
    moments = lf.input_moments(model, state, [x[:2], x[2:]], convolutions=True)
    short = lf.input_moments(model, state, [x], convolutions=True, diagonal=True)
    scores = [lf.wanda(each)(state.params, state.masks)["weight"] for each in (moments, short)]
    images, kernel = (x, (3, 3)) if sides == 2 else (x[:, :, None], (1, 3))
    parts = [F.unfold(part, kernel).transpose(1, 2).flatten(0, 1) for part in images.chunk(groups, 1)]
    matrices = torch.stack([second(rows) for rows in parts])
    torch.testing.assert_close(moments["weight"], matrices if groups > 1 else matrices[0])
    for output in range(6):
        read = parts[output // (6 // groups)].square().mean(0).sqrt()
        wanted = state.params["weight"][output].abs() * read.view(state.params["weight"][output].shape)
        for found in scores:
            torch.testing.assert_close(found[output], wanted)
    assert not lf.input_moments(model, state, [x])
    by_size = lf.wanda({})(state.params, state.masks)["weight"]
    assert torch.equal(by_size, state.params["weight"].abs())


def test_a_turned_weight_reads_along_its_rows() -> None:
    model, state = made(nn.Linear(3, 2, bias=False))
    moments = lf.input_moments(model, state, [drawn(7, 3)])
    assert moments.transposed == frozenset()
    plain = lf.wanda(moments)(state.params, state.masks)["weight"]
    assert torch.equal(lf.wanda(dict(moments))(state.params, state.masks)["weight"], plain)
    moments.transposed = frozenset({"weight"})
    turned = lf.wanda(moments)({"weight": state.params["weight"].T}, {"weight": state.masks["weight"].T})
    assert torch.equal(turned["weight"], plain.T)


class Writing(nn.Module):
    """Changes what it is called with, and its parameter."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x.mul_(2.0))
        self.fc.weight.data.zero_()
        self.seen.add_(1)
        return out


def test_moments_are_of_the_network_and_the_inputs_as_they_were() -> None:
    """Of masked weights, each batch anew; nothing that was given is changed."""
    model, state = made(Writing())
    x = drawn(4, 3)
    before = x.clone(), lf.tree_map(torch.clone, state.params), lf.tree_map(torch.clone, state.buffers)
    found = lf.input_moments(model, state, [x, x])["fc.weight"]
    torch.testing.assert_close(found, second(2 * x))
    assert torch.equal(x, before[0])
    assert lf.same_bits((state.params, state.buffers), before[1:])
    two, start = made(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    half = start._replace(masks={**start.masks, "0.weight": torch.arange(12).view(4, 3) % 2 == 0})
    hidden = F.linear(x, start.params["0.weight"] * half.masks["0.weight"], start.params["0.bias"])
    torch.testing.assert_close(lf.input_moments(two, half, [x])["1.weight"], second(hidden))


@pytest.mark.parametrize(
    ("leaf", "moments", "fits"),
    [
        ((4, 3), (3, 3), True),
        ((1, 3), (3, 3), True),
        ((4, 3), (4, 4), False),
        ((4, 3), (3, 4), False),
        ((4, 3), (3,), False),
        ((4, 3), (2, 3, 3), False),  # a linear layer has no groups
        ((4, 3), (1, 3, 3), False),
        ((4, 3, 2), (6, 6), True),
        ((4, 3, 2), (2, 6, 6), True),
        ((4, 3, 2), (3, 6, 6), False),  # four outputs are no three groups
        ((4, 3, 2), (2, 2, 6, 6), False),
        ((4, 3, 2, 2), (4, 12, 12), True),
        ((4, 3, 2, 2), (4, 6, 6), False),
    ],
)
def test_moments_that_fit_no_layer_are_refused(leaf: tuple[int, ...], moments: tuple[int, ...], fits: bool) -> None:
    weight, inputs = torch.ones(leaf), torch.ones(leaf)[0].numel()
    given: Any = Moments({"w": torch.ones(moments)})
    short: Any = Moments({"w": torch.ones(moments[:-1])})
    short.diagonal = True
    for each in (given, short) if fits else (given,):
        if fits:
            check_moments(each, "w", weight)
        else:
            words = (
                rf"^moments: 'w' is of shape \({', '.join(map(str, moments))},?\), and its layer reads {inputs} inputs"
            )
            with pytest.raises(UserError, match=words):
                lf.wanda(each)({"w": weight}, {"w": weight.bool()})
    turned: Any = Moments({"w": torch.ones(3, 3)})
    turned.transposed = frozenset({"w"})
    check_moments(turned, "w", torch.ones(3, 4))
    with pytest.raises(UserError, match="its layer reads 4 inputs"):
        check_moments(turned, "w", torch.ones(4, 3))


def test_inputs_of_another_shape_are_refused_by_it() -> None:
    model, state = made(nn.Linear(3, 2))
    with pytest.raises(UserError, match=r"cannot take inputs of shape \(5,\)"):
        lf.input_moments(model, state, [drawn(4, 5)])
