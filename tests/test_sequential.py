"""Pruning block by block, against loops over the blocks that are written down here from the papers."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from documentation import blocks
from test_surgery import published
from torch import Tensor, nn

import lthfunc as lf

transformers = pytest.importorskip("transformers")
HIDDEN, LAYERS, WORDS = 32, 3, 40
TOKENS = torch.randint(WORDS, (12, 10), generator=torch.Generator().manual_seed(0))
BATCHES = [TOKENS[:5], TOKENS[5:10], TOKENS[10:]]
HALF = 0.5


def llama() -> Any:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    net = transformers.LlamaForCausalLM(config).eval()
    for leaf in net.parameters():  # large weights, with outliers
        leaf.data = leaf.data * 8 * (1 + (torch.rand_like(leaf) < 0.02) * 6)
    return net


def linears(block: nn.Module) -> dict[str, nn.Linear]:
    return {name: part for name, part in block.named_modules() if isinstance(part, nn.Linear)}


def by_hand(net: Any, change: Callable[[int, dict[str, nn.Linear], dict[str, Tensor]], None]) -> None:
    """Catch what the first layer of a Llama gets; call layer after layer on it, and change each in between.

    change: (number, linear layers, X of each: all rows of inputs, float64) -> changes their weights.
    """
    caught: list[tuple[Tensor, dict[str, Any]]] = []
    handle = net.model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: caught.append((args[0], kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        for batch in BATCHES:
            net(batch, use_cache=False)
        handle.remove()
        for number, block in enumerate(net.model.layers):
            with Inputs(linears(block)) as read:
                for hidden, kwargs in caught:
                    block(hidden, **kwargs)
            rows = {name: torch.cat([x.flatten(0, -2) for x in found]).double() for name, found in read.items()}
            change(number, linears(block), rows)
            caught = [(block(hidden, **kwargs), kwargs) for hidden, kwargs in caught]


def wanda_by_hand(number: int, layers: dict[str, nn.Linear], inputs: dict[str, Tensor]) -> None:
    """Sun et al. 2024, alg. 1: of each output, the weights with the smallest |w| ‖x‖ go."""
    for name, layer in layers.items():
        metric = layer.weight.abs() * inputs[name].norm(dim=0).to(layer.weight)
        gone = metric.argsort(dim=1, stable=True)[:, : metric.shape[1] // 2]
        layer.weight.scatter_(1, gone, 0)


def sparsegpt_by_hand(number: int, layers: dict[str, nn.Linear], inputs: dict[str, Tensor]) -> None:
    for name, layer in layers.items():
        x = inputs[name]
        weight, _ = published(layer.weight.double(), x.T @ x / len(x), HALF, block=16, damping=0.01)
        layer.weight.copy_(weight)


METHODS: dict[str, tuple[lf.LayerPruning, Any]] = {
    "wanda": (lf.wanda_pruning(), wanda_by_hand),
    "sparsegpt": (lf.sparsegpt_pruning(block=16), sparsegpt_by_hand),
}


@pytest.mark.parametrize(("pruning", "change"), METHODS.values(), ids=METHODS)
def test_a_llama_is_pruned_as_by_a_loop_over_its_layers(pruning: lf.LayerPruning, change: Any) -> None:
    net = llama()
    model = lf.from_module(net, init=lf.as_built, tokens=True)
    start = lf.init(model)
    before, told = copy.deepcopy((start, model.evaluating.state_dict())), list[Any]()
    prune = lf.prune_sequentially(model, BATCHES, HALF, pruning=pruning, on_block=lambda *block: told.append(block))
    pruned = prune(start)
    assert lf.same_bits((start, dict(model.evaluating.state_dict())), (before[0], dict(before[1])))
    by_hand(net, change)
    wanted = dict(net.named_parameters())
    for name, leaf in pruned.params.items():
        if change is wanda_by_hand:
            assert torch.equal(leaf, wanted[name]), name
        torch.testing.assert_close(leaf, wanted[name].detach(), rtol=1e-4, atol=1e-4)
        mask = pruned.masks.get(name, torch.ones(()))
        assert torch.equal(leaf != 0, (wanted[name] != 0) & (mask != 0))
        assert lf.density({name: mask.bool()}) == (HALF if "layers" in name and leaf.ndim == 2 else 1)
    assert [name for name, _ in told] == [f"model.layers.{number}" for number in range(LAYERS)]
    assert {left.density for _, left in told} == {HALF}
    assert lf.same_bits(prune(start), pruned)


def owl_by_hand(threshold: float, spread: float, density: float) -> list[float]:
    """Yin et al. 2024, sec. 3.2: outliers of |w| ‖x‖ in the network before it is pruned."""
    shares = []

    def share(number: int, layers: dict[str, nn.Linear], inputs: dict[str, Tensor]) -> None:
        metric = [layer.weight.abs() * inputs[name].norm(dim=0).to(layer.weight) for name, layer in layers.items()]
        flat = torch.cat([each.flatten() for each in metric])
        shares.append(float((flat > threshold * flat.mean()).double().mean()))

    by_hand(llama(), share)
    low, high = min(shares), max(shares)
    densities = np.array([(each - low) / (high - low) * 2 * spread for each in shares])
    return list(densities - densities.mean() + density)


def alphas_by_hand(spread: float, density: float) -> list[float]:
    """Lu et al. 2024, eqs. 2 and 3."""
    exponents = []
    for block in llama().model.layers:
        each = []
        for layer in linears(block).values():
            w = layer.weight.detach().double().numpy()
            values = np.linalg.eigvalsh(w @ w.T if len(w) < len(w.T) else w.T @ w)
            top, least = values[len(values) // 2 :], values[len(values) // 2]
            each.append(1 + len(top) / np.log(top / least).sum())
        exponents.append(np.mean(each))
    low, high = min(exponents), max(exponents)
    sparsities = np.array([(each - low) / (high - low) * 2 * spread + 1 - spread for each in exponents])
    return list(1 - sparsities * (1 - density) / sparsities.mean())


@pytest.mark.parametrize(
    ("budgets", "wanted"),
    [
        (lf.owl(3, 0.1), lambda: owl_by_hand(3, 0.1, 0.4)), (lf.alpha_pruning(0.2), lambda: alphas_by_hand(0.2, 0.4)),
    ],
    ids=["owl", "alpha"],
)  # fmt: skip
def test_blocks_get_the_densities_of_the_papers(budgets: lf.BlockBudgets, wanted: Any) -> None:
    model = lf.from_module(llama(), init=lf.as_built, tokens=True)
    start = lf.init(model)
    pruned = lf.prune_sequentially(model, BATCHES, 0.4, pruning=lf.wanda_pruning(), budgets=budgets)(start)
    densities = wanted()
    assert max(densities) - min(densities) > 0.1
    kept, total = 0, 0
    for number, density in enumerate(densities):
        for name, mask in pruned.masks.items():
            if f"layers.{number}." in name:
                assert int(mask.sum()) == pytest.approx(density * mask.numel(), abs=1.001)
                kept, total = kept + int(mask.sum()), total + mask.numel()
    assert kept == round(0.4 * total)


class Residual(nn.Module):
    """A block of a convolutional network: strides, dilation, groups and padding by reflection."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(ins, outs, 3, stride=stride, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(outs)
        self.b = nn.Conv2d(outs, outs, 3, padding=2, dilation=2, padding_mode="reflect")
        self.cut = nn.Conv2d(ins, outs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(F.gelu(self.norm(self.a(x)))) + self.cut(x)
        return F.relu_(y + 0.5)  # no channel is always zero: those are pruned first


def convolutional() -> Any:
    torch.manual_seed(2)
    blocks = nn.Sequential(Residual(4, 8, 1), Residual(8, 8, 2))
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), blocks, nn.Flatten(), nn.Linear(128, 3)).eval()


IMAGES = [torch.randn(n, 1, 10, 10, generator=torch.Generator().manual_seed(n)) for n in (20, 9)]


def rows_of(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """(groups, rows, features), by `F.unfold`."""
    reflects = conv.padding_mode == "reflect"
    x = F.pad(x, (2, 2, 2, 2), "reflect") if reflects else x
    how: Any = conv.kernel_size, conv.dilation, 0 if reflects else conv.padding, conv.stride
    return torch.stack([F.unfold(part, *how).transpose(1, 2).flatten(0, 1) for part in x.chunk(conv.groups, 1)])


class Inputs:
    """What layers are called with, while it is entered."""

    def __init__(self, layers: dict[str, Any]) -> None:
        self.layers, self.of = layers, {name: list[Tensor]() for name in layers}

    def __enter__(self) -> dict[str, list[Tensor]]:
        self.handles = [
            layer.register_forward_pre_hook(lambda _, args, found=self.of[name]: found.append(args[0]))
            for name, layer in self.layers.items()
        ]
        return self.of

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("method", METHODS)
def test_convolutions_are_pruned_on_their_unfolded_inputs(method: str) -> None:
    net = convolutional()
    model = lf.from_module(net, init=lf.as_built)
    start = lf.init(model)
    pruning = lf.wanda_pruning() if method == "wanda" else lf.sparsegpt_pruning(block=9)
    pruned = lf.prune_sequentially(model, IMAGES, HALF, pruning=pruning)(start)
    with torch.no_grad():
        hidden = [net[1](net[0](x)) for x in IMAGES]
        for block in net[2]:
            convs = {name: part for name, part in block.named_modules() if isinstance(part, nn.Conv2d)}
            with Inputs(convs) as read:
                for x in hidden:
                    block(x)
            for name, part in convs.items():
                rows = torch.cat([rows_of(part, x) for x in read[name]], 1).double()
                matrix = part.weight.view(part.groups, -1, rows.shape[2])
                for weight, x in zip(matrix, rows, strict=True):
                    if method == "wanda":
                        metric = weight.abs() * x.square().mean(0).sqrt().to(weight)
                        half = metric.shape[1] // 2  # where the inputs are odd, the first outputs keep one more
                        gone = [half + (metric.shape[1] % 2) * (row >= len(metric) / 2) for row in range(len(metric))]
                        for row, number in enumerate(gone):
                            weight[row, metric[row].argsort(stable=True)[:number]] = 0
                    else:
                        new, _ = published(weight.double(), x.T @ x / len(x), HALF, block=9, damping=0.01)
                        weight.copy_(new)
            hidden = [block(x) for x in hidden]
    wanted = dict(net.named_parameters())
    for name, leaf in pruned.params.items():
        torch.testing.assert_close(leaf, wanted[name].detach(), rtol=1e-4, atol=1e-4)
    assert lf.density({name: mask for name, mask in pruned.masks.items() if name.startswith("2.")}) == HALF
    assert pruned.masks["0.weight"].all()
    assert pruned.masks["4.weight"].all()


def test_the_page_does_what_it_says(capsys: Any) -> None:
    for code in blocks("docs/how-to/block-by-block.md", "python"):
        names: dict[str, Any] = {}
        exec(compile(code, "block-by-block.md", "exec"), names)
        if "sparse" in names:
            zeros = [float((leaf == 0).float().mean()) for name, leaf in names["sparse"].state_dict().items()
                     if "layers" in name and "norm" not in name]  # fmt: skip
            assert zeros == [0.5] * 21
    assert re.findall(r"Count\(kept=\d+", capsys.readouterr().out)
