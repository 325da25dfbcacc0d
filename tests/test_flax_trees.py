"""Trees as Flax has them: in NumPy alone, and in Flax, optax and jaxpruner's form where JAX is installed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from documentation import blocks
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.trees.ops import same_bits
from lthfunc.trees.types import TrainState


class Net(nn.Module):
    """Every kind of layer that has a place in Flax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.group = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4, bias=False)
        self.up, self.more = nn.ConvTranspose2d(8, 5, 2, stride=2), nn.ConvTranspose2d(5, 5, 3)
        self.fc, self.plain, self.out = nn.Linear(500, 7), nn.LayerNorm(7), nn.Linear(7, 4, bias=False)
        self.scale = nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.group(self.norm(self.conv(x)).relu()).relu())
        x = self.plain(self.fc(self.more(x).flatten(1)))
        found: Tensor = self.out(x) * self.scale
        return found


def network() -> tuple[lf.Model, TrainState]:
    """With statistics and scales that aren't those of a new one."""
    torch.manual_seed(0)
    net = Net()
    net(torch.randn(20, 3, 8, 8) * 2 + 1)
    nn.init.uniform_(net.plain.weight)
    model = lf.from_module(net, init=lf.as_built, never_prune=["out*"])
    return model, lf.prune(density=0.4)(lf.init(model))


def test_layouts_by_hand() -> None:
    model, state = network()
    (variables, masks), params = lf.to_flax(state, lf.flax_layout(model, {"conv": "body/Conv_0"})), state.params
    there = variables["params"]
    assert np.array_equal(there["body"]["Conv_0"]["kernel"][1, 2, 0], params["conv.weight"][:, 0, 1, 2])
    assert np.array_equal(there["out"]["kernel"], params["out.weight"].T)
    assert np.array_equal(there["up"]["kernel"][0, 1], params["up.weight"][:, :, 1, 0])
    assert np.array_equal(there["plain"]["scale"], params["plain.weight"])
    assert np.array_equal(variables["batch_stats"]["norm"]["var"], state.buffers["norm.running_var"])
    assert "num_batches_tracked" not in str(variables)
    assert masks["body"]["Conv_0"]["kernel"].dtype == np.uint8
    assert [masks["out"]["kernel"], masks["norm"]["scale"], masks["scale"]] == [None] * 3
    # A linear layer behind images: the inputs of one place are neighbours there, those of one channel here.
    flat, _ = lf.to_flax(state, lf.flax_layout(model, flattened={"fc": (5, 10, 10)}))
    wanted = params["fc.weight"].view(7, 5, 10, 10)[2, :, 3, 4]
    assert np.array_equal(flat["params"]["fc"]["kernel"].reshape(10, 10, 5, 7)[3, 4, :, 2], wanted)


def packed(masks: Any) -> Any:
    """As jaxpruner has them with ``use_packed_masks``."""
    if isinstance(masks, dict):
        return {name: packed(part) for name, part in masks.items()}
    return None if masks is None else np.packbits(masks)


def test_there_and_back_is_the_same() -> None:
    model, state = network()
    layout = lf.flax_layout(model, {"fc": "Dense_0"}, {"fc": (5, 10, 10)})
    variables, masks = lf.to_flax(state, layout)
    for given in (masks, packed(masks)):
        ticket = lf.from_flax(variables, layout, given)
        assert same_bits((ticket.params, ticket.masks), (state.params, state.masks))
        assert list(ticket.params) == list(state.params)
    kept = {name: leaf for name, leaf in ticket.buffers.items() if "tracked" not in name}
    assert same_bits(kept, {name: state.buffers[name] for name in kept})
    dense = lf.from_flax(variables, layout)
    assert lf.density(dense.masks) == 1
    moments = {name: torch.randn_like(leaf) for name, leaf in state.params.items()}
    assert same_bits(lf.from_flax_tree(lf.to_flax_tree(moments, layout), layout), moments)
    variables["params"]["Dense_0"]["kernel"][:] = 0  # its own memory
    assert state.params["fc.weight"].any()


def without(tree: Any, *path: str) -> Any:
    rest = {name: part for name, part in tree.items() if name != path[0]}
    return rest if len(path) == 1 else {**rest, path[0]: without(tree[path[0]], *path[1:])}


def test_what_does_not_fit_is_told() -> None:
    model, state = network()
    layout = lf.flax_layout(model)
    variables, _ = lf.to_flax(state, layout)
    params = variables["params"]
    wrong = {**params, "out": {"kernel": np.zeros((4, 7))}}
    whole = {**params, "out": {**params["out"], "kernel": np.zeros((7, 4), dtype=np.int64)}}
    there = {**variables, "params": {**params, "head": params["fc"]}}
    layouts: list[tuple[dict[str, Any], str]] = [
        ({"names": {"Conv_0": "conv"}}, "names: unknown name 'Conv_0'; did you mean 'conv'"),
        ({"names": {"up": "x", "more": "x"}}, "names: up.weight and more.weight would both be x/kernel"),
        ({"flattened": {"conv": (1, 2)}}, r"flattened: invalid value 'conv .Conv2d.' .expected linear layers"),
        ({"flattened": {"fc": (5, 9, 9)}}, r"flattened: invalid value .* .expected a shape of 500 numbers for fc"),
    ]
    for given, words in layouts:
        with pytest.raises(UserError, match=f"^flax_layout: {words}"):
            lf.flax_layout(model, **given)
    unshaped: Any = {"fc": 500}
    with pytest.raises(UserError, match=r"^flax_layout: flattened must be a dict of shapes, such as \(8, 6, 6\), not"):
        lf.flax_layout(model, flattened=unshaped)
    with pytest.raises(UserError, match=r"^flax_layout: Flax builds LSTM in another way"):
        lf.flax_layout(lf.from_module(nn.LSTM(2, 3)))
    trees: list[tuple[Any, str]] = [
        ((without(variables, "params", "fc"), layout), "from_flax: variables: params/fc/kernel is missing"),
        ((params, layout), "from_flax: variables: batch_stats/norm/mean is missing"),
        ((there, layout), "variables: the layout has no place for params/head/kernel"),
        (({**variables, "params": wrong}, layout), r"variables: params/out/kernel has shape \(4, 7\) .expected \(7, 4"),
        (({**variables, "params": whole}, layout), r"from_flax: variables: out/kernel is int64 .expected floats.$"),
        ((variables, layout, {"out": {"kernel": np.ones((7, 4))}}), "from_flax: masks: out.weight has one, but Net"),
        ((variables, layout, {"fc": {"kernel": np.full((500, 7), 2)}}), "masks: fc/kernel is no mask: it holds other"),
        ((variables, layout, {"fc": {"kernel": "x"}}), "masks: fc/kernel is a str, not an array of numbers"),
    ]
    for arguments, words in trees:
        with pytest.raises(UserError, match=f"^{words}"):
            lf.from_flax(*arguments)
    with pytest.raises(UserError, match=r"^to_flax_tree: tree: 'conv' is not a parameter"):
        lf.to_flax_tree({"conv": torch.ones(1)}, layout)
    with pytest.raises(UserError, match=r"^to_flax_tree: tree: 'fc.weight' has shape \(3,\) \(expected \(7, 500\)\)$"):
        lf.to_flax_tree({"fc.weight": torch.ones(3)}, layout)


def test_flax_computes_the_same() -> None:
    pytest.importorskip("jax", reason="Flax is not installed")
    fnn = pytest.importorskip("flax.linen", reason="Flax is not installed")
    model, state = network()

    class There(fnn.Module):  # type: ignore[misc, name-defined]
        @fnn.compact  # type: ignore[untyped-decorator]
        def __call__(self, x: Any) -> Any:
            x = fnn.Conv(8, (3, 3), padding=1, name="conv")(x)
            x = fnn.relu(fnn.BatchNorm(use_running_average=True, epsilon=1e-5, name="norm")(x))
            x = fnn.Conv(8, (3, 3), 2, padding=1, feature_group_count=4, use_bias=False, name="group")(x)
            x = fnn.ConvTranspose(5, (2, 2), (2, 2), padding="VALID", name="up")(fnn.relu(x))
            x = fnn.ConvTranspose(5, (3, 3), padding="VALID", name="more")(x).reshape(len(x), -1)
            x = fnn.LayerNorm(epsilon=1e-5, name="plain")(fnn.Dense(7, name="fc")(x))
            return fnn.Dense(4, use_bias=False, name="out")(x) * self.param("scale", fnn.initializers.ones, (4,))

    variables, _ = lf.to_flax(state, lf.flax_layout(model, flattened={"fc": (5, 10, 10)}))
    x = torch.randn(6, 3, 8, 8)
    found = There().apply(variables, x.permute(0, 2, 3, 1).numpy())
    wanted = lf.to_module(lf.ticket(state), model)(x).detach()
    torch.testing.assert_close(torch.from_numpy(np.array(found)), wanted)


def test_the_page_trains_on_in_flax_and_takes_the_same_steps(capsys: Any) -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    for package in ("flax", "optax"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    first, moments = (re.sub(r"\b200\b", "10", code) for code in blocks("docs/how-to/jax.md", "python"))
    names: dict[str, Any] = {}
    exec(compile(first, "jax.md", "exec"), names)
    assert re.search(r"20% of the weights: 0\.\d+", capsys.readouterr().out)
    exec(compile(moments, "jax.md", "exec"), names)
    # The next steps of Adam, from its moments on, are those of this library.
    model, data, layout, step = names["model"], names["data"], names["layout"], names["step"]
    state, optimizer = names["train"](lf.init(model)), lf.adam(1.2e-3)
    params, opt = lf.to_flax(state, layout).variables["params"], names["opt"]
    names["masks"] = jax.tree.map(lambda leaf: None, params)
    jax.clear_caches()  # of a step with the masks of before
    ours = lf.make_train_step(model, lf.cross_entropy, optimizer)
    for x, y in lf.sample_batches(data, 60, count=5, seed=1):
        state, _ = ours(state, (x, y))
        params, opt = step(params, opt, names["there"](x), y.numpy())
    torch.testing.assert_close(lf.from_flax(params, layout).params, state.params, rtol=1e-4, atol=1e-6)
