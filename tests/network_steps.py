"""The steps that random networks are made of: each writes lines of a module, from a value to the next."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
Shape = tuple[int, ...]

#: Activations by the expression of one; "{}" is what it is applied to.
ACTIVATIONS = (
    "torch.relu({})", "F.relu({}, inplace=True)", "F.leaky_relu({}, 0.1)", "F.relu6({})", "torch.sigmoid({})",
    "torch.tanh({})", "F.silu({})", "F.gelu({})", "F.hardtanh({})", "F.hardsigmoid({})", "F.hardswish({})",
    "F.elu({}, 0.7)",
)  # fmt: skip
#: Other functions of single numbers.
SHIFTS = (
    "{} + 0.3", "0.5 - {}", "-{}", "{}.abs()", "{}.clamp(-1, 0.5)", "F.softplus({}, 2)", "F.mish({})", "F.selu({})",
    "torch.maximum({}, 0.3 * {})",
)  # fmt: skip
#: What not every engine has a rule for.
STRANGE = ("torch.erf({})", "torch.atan({})", "torch.log1p({}.abs())")


@dataclass
class Pen:
    """Writes a module: layers for its constructor, lines for its forward function."""

    rng: random.Random
    batch: int
    layers: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)

    def layer(self, made: str) -> str:
        self.layers.append(made)
        return f"self.m{len(self.layers) - 1}"

    def value(self, expression: str, shape: Shape) -> str:
        name = f"v{len(self.shapes)}"
        self.lines.append(f"{name} = {expression}")
        self.shapes[name] = shape
        return name

    def maybe(self, share: float) -> bool:
        return self.rng.random() < share


def chosen(rng: random.Random, weights: Mapping[T, float]) -> T:
    """One of these, each as often as its weight says."""
    return rng.choices(list(weights), list(weights.values()))[0]


def conv(pen: Pen, x: str, outs: int | None = None, *, same: bool = False) -> str:
    """A convolution; same: one that keeps the size of images."""
    rng = pen.rng
    ins, *sides = pen.shapes[x]
    outs = outs or rng.randint(1, 6)
    kernel = [rng.choice([1, 3] if same else [1, 2, 3, 3, 5]) for _ in range(2)]
    dilation, stride = rng.choice([1, 1, 1, 2]), 1 if same else rng.choice([1, 1, 2, 3])
    padding = [dilation * (k - 1) // 2 for k in kernel] if same else [rng.randint(0, 2) for _ in range(2)]
    reach = [dilation * (k - 1) + 1 for k in kernel]
    if any(r > side + 2 * p for r, side, p in zip(reach, sides, padding, strict=True)):
        return x
    groups = 1
    if pen.maybe(0.25):
        groups = rng.choice([g for g in range(1, ins + 1) if ins % g == 0 and (not same or outs % g == 0)])
        outs = outs if outs % groups == 0 else groups * rng.randint(1, 2)
    made = pen.layer(
        f"nn.Conv2d({ins}, {outs}, {tuple(kernel)}, {stride}, {tuple(padding)}, {dilation}, {groups}, "
        f"bias={pen.maybe(0.6)})"
    )
    after = [(side + 2 * p - r) // stride + 1 for side, p, r in zip(sides, padding, reach, strict=True)]
    if same and pen.maybe(0.05):  # a layer called twice
        x = pen.value(f"{made}({x})", (outs, *after)) if outs == ins else x
    return pen.value(f"{made}({x})", (outs, *after))


def linear(pen: Pen, x: str, outs: int | None = None) -> str:
    (ins,) = pen.shapes[x]
    outs = outs or pen.rng.choice([1, 3, 8, 17, 40])
    made = pen.layer(f"nn.Linear({ins}, {outs}, bias={pen.maybe(0.7)})")
    return pen.value(f"{made}({x})", (outs,))


def norm(pen: Pen, x: str) -> str:
    shape = pen.shapes[x]
    channels, places = shape[0], 1
    for side in shape[1:]:
        places *= side
    kind = pen.rng.choice(["batch"] * 6 + ["group"] * 2 + ["layer"])
    affine = pen.maybe(0.8)
    if kind == "batch" and pen.batch * places < 4:
        kind = "group"
    if kind == "batch":
        made = f"nn.BatchNorm{'2d' if len(shape) == 3 else '1d'}({channels}, affine={affine})"
    elif kind == "group" and channels * places > 1:
        groups = pen.rng.choice([g for g in range(1, channels + 1) if channels % g == 0 and channels // g * places > 1])
        made = f"nn.GroupNorm({groups}, {channels}, affine={affine})"
    elif len(shape) == 3 and not pen.maybe(0.2):
        made = f"nn.LayerNorm({list(shape)}, elementwise_affine=False)"
    else:
        made = f"nn.LayerNorm({list(shape)}, elementwise_affine={affine})"
    return pen.value(f"{pen.layer(made)}({x})", shape)


def act(pen: Pen, x: str) -> str:
    share = 0.03
    if pen.maybe(share):
        return pen.value(pen.rng.choice(STRANGE).replace("{}", x), pen.shapes[x])
    kind = ACTIVATIONS[0] if pen.maybe(0.5) else pen.rng.choice(ACTIVATIONS)
    if "inplace" in kind and not (pen.lines and pen.lines[-1].startswith(f"{x} = self.")):
        kind = kind.replace("{}", "{}.clone()")  # a batch is the caller's, and other operations need what they gave
    return pen.value(kind.replace("{}", x), pen.shapes[x])


def pool(pen: Pen, x: str) -> str:
    rng = pen.rng
    channels, *sides = pen.shapes[x]
    if min(sides) < 2:
        return x
    kind = rng.choice(["max"] * 4 + ["overlapping", "odd", "average", "adaptive", "mean"])
    if kind == "max":
        return pen.value(f"F.max_pool2d({x}, 2)", (channels, *(side // 2 for side in sides)))
    if kind == "overlapping" and min(sides) >= 3:
        return pen.value(f"F.max_pool2d({x}, 3, 2, 1)", (channels, *((side - 1) // 2 + 1 for side in sides)))
    if kind == "odd":
        return pen.value(f"F.max_pool2d({x}, 2, 2, ceil_mode=True)", (channels, *(-(-side // 2) for side in sides)))
    if kind == "average":
        k = rng.randint(1, min(sides))
        s = rng.randint(1, k)
        return pen.value(f"F.avg_pool2d({x}, {k}, {s})", (channels, *((side - k) // s + 1 for side in sides)))
    if kind == "mean":
        return pen.value(f"{x}.mean((2, 3), keepdim=True)", (channels, 1, 1))
    size = (rng.randint(1, sides[0]), rng.randint(1, sides[1]))
    kind = "adaptive_max_pool2d" if pen.maybe(0.1) else "adaptive_avg_pool2d"
    return pen.value(f"F.{kind}({x}, {size})", (channels, *size))


def inner(pen: Pen, x: str) -> str:
    """Some steps that keep the shape."""
    shape = pen.shapes[x]
    for _ in range(pen.rng.randint(1, 3)):
        keeping: list[Callable[[Pen, str], str]] = [norm, act, same_layer, same_layer]
        x = pen.rng.choice(keeping)(pen, x)
        if pen.maybe(0.08):
            x = residual(pen, x)
    assert pen.shapes[x] == shape
    return x


def same_layer(pen: Pen, x: str) -> str:
    shape = pen.shapes[x]
    return conv(pen, x, shape[0], same=True) if len(shape) == 3 else linear(pen, x, shape[0])


def residual(pen: Pen, x: str) -> str:
    """Additions of all kinds: either order, before or after activations, of both branches, in place, of itself."""
    shape = pen.shapes[x]
    kind = pen.rng.choice(["plain"] * 3 + ["rectified"] * 2 + ["both", "in place", "itself", "thrice"])
    if kind == "itself":
        return pen.value(f"{x} + {x}", shape)
    y = inner(pen, x)
    if y == x:
        return x
    if kind == "rectified":
        y = pen.value(f"torch.relu({norm(pen, same_layer(pen, y))})", shape)
    elif kind == "both":
        x = inner(pen, x)
    elif kind == "thrice":
        z = inner(pen, x)
        return pen.value(f"{x} + ({y} + {z})" if pen.maybe(0.5) else f"{x} + {y} + {z}", shape)
    elif kind == "in place" and y not in ("x", x):
        y = pen.value(f"{y} * 1.0", shape)  # no operation needs for its gradient what is changed
        pen.lines.append(f"{y} += {x}")
        return y
    y = pen.value(f"{x} + {y}" if pen.maybe(0.5) else f"{y} + {x}", shape)
    return pen.value(f"torch.relu({y})", shape) if pen.maybe(0.5) else y


def concatenated(pen: Pen, x: str) -> str:
    shape = pen.shapes[x]
    if len(shape) == 1 and not pen.maybe(0.1):  # few engines join flattened values
        return inner(pen, x)
    parts = [x if pen.maybe(0.3) else inner(pen, x) for _ in range(pen.rng.randint(2, 3))]
    joined = pen.value(f"torch.cat([{', '.join(parts)}], 1)", (shape[0] * len(parts), *shape[1:]))
    return conv(pen, joined) if len(shape) == 3 else joined


def moved(pen: Pen, x: str) -> str:
    """Slices, padding, scaling and dropout that drops nothing."""
    channels, *sides = pen.shapes[x]
    kind = pen.rng.choice(["slice", "pad", "scale", "divide", "shift", "product", "gate", "dropout", "alias"])
    if kind == "shift":
        return pen.value(pen.rng.choice(SHIFTS).replace("{}", x), pen.shapes[x])
    if kind == "product":
        return pen.value(f"{x} * torch.sigmoid({x})", pen.shapes[x])
    if kind == "gate" and len(sides) == 2:
        gate = f"torch.sigmoid({x}.mean((2, 3), keepdim=True))"
        return pen.value(f"{x} * {gate}" if pen.maybe(0.5) else f"{gate} - {x}", pen.shapes[x])
    if kind == "slice" and len(sides) == 2 and channels > 1:
        return pen.value(f"{x}[:, 1:, ::2]", (channels - 1, -(-sides[0] // 2), sides[1]))
    if kind == "pad" and len(sides) == 2:
        return pen.value(f"F.pad({x}, (1, 0, 0, 2))", (channels, sides[0] + 2, sides[1] + 1))
    if kind == "scale":
        return pen.value(f"{x} * 0.7", pen.shapes[x])
    if kind == "divide":
        return pen.value(f"{x} / 1.3", pen.shapes[x])
    if kind == "dropout":
        return pen.value(f"F.dropout({x}, 0.0, self.training)", pen.shapes[x])
    return pen.value(f"{x}.clone()", pen.shapes[x])


def flattened(pen: Pen, x: str) -> str:
    features = 1
    for side in pen.shapes[x]:
        features *= side
    if features > 150:
        x = pen.value(f"F.adaptive_avg_pool2d({x}, 2)", (pen.shapes[x][0], 2, 2))
        features = pen.shapes[x][0] * 4
    form = pen.rng.choice(["{}.flatten(1)", "torch.flatten({}, 1)", "{}.reshape({}.shape[0], -1)"])
    return pen.value(form.replace("{}", x), (features,))


def named(layers: Sequence[Callable[[Pen, str], str]]) -> Callable[[Pen, str], str]:
    def step(pen: Pen, x: str) -> str:
        for each in layers:
            x = each(pen, x)
        return x

    return step


IMAGE_STEPS = [
    conv, named([conv, act]), named([conv, norm, act]), named([conv, act, pool]), named([conv, norm, act, pool]),
    named([conv, pool]), norm, act, residual, named([conv, residual]), named([conv, norm, act, residual]),
    concatenated, moved,
]  # fmt: skip
IMAGE_WEIGHTS = [2, 3, 4, 3, 3, 1, 1, 1, 2, 3, 4, 1, 1]
FLAT_STEPS = [linear, named([linear, act]), named([linear, norm, act]), residual, named([linear, residual]), norm,
              act, concatenated, moved]  # fmt: skip
FLAT_WEIGHTS = [2, 4, 3, 2, 3, 1, 1, 1, 1]
