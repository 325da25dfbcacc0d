"""The steps that random networks of pixels are made of: images (n, channels, height, width), sequences of one side."""

from __future__ import annotations

import network_steps
from network_steps import Pen, act, chosen, norm


def layer(pen: Pen, x: str, outs: int | None = None) -> str:
    """A convolution that keeps the sides, over one side or both, with any padding mode."""
    ins, *sides = shape = pen.shapes[x]
    outs = outs or pen.rng.randint(1, 6)
    mode = pen.rng.choice(["zeros"] * 6 + ["reflect", "replicate", "circular"])
    kernel = 3 if min(sides) > 1 else 1
    groups = pen.rng.choice([g for g in range(1, ins + 1) if ins % g == 0 and outs % g == 0])
    padding = pen.rng.choice(["'same'", "'same'", str(kernel // 2)])
    made = pen.layer(
        f"nn.Conv{len(sides)}d({ins}, {outs}, {kernel}, padding={padding}, groups={groups}, "
        f"bias={pen.maybe(0.6)}, padding_mode='{mode}')"
    )
    return pen.value(f"{made}({x})", (outs, *shape[1:]))


def strided(pen: Pen, x: str) -> str:
    """A convolution or a pooling that leaves fewer places."""
    ins, *sides = pen.shapes[x]
    if min(sides) < 3:
        return x
    d = len(sides)
    kind = pen.rng.choice(["conv", "max", "average", "slice"])
    if kind == "conv":
        outs, kernel, stride = pen.rng.randint(1, 6), pen.rng.randint(1, 3), pen.rng.randint(1, 3)
        made = pen.layer(f"nn.Conv{d}d({ins}, {outs}, {kernel}, {stride})")
        return pen.value(f"{made}({x})", (outs, *((side - kernel) // stride + 1 for side in sides)))
    if kind == "slice":
        return pen.value(f"{x}[..., 1::2]", (ins, *sides[:-1], sides[-1] // 2))
    ceil = pen.maybe(0.3)
    size = [-(-side // 2) if ceil else side // 2 for side in sides]
    return pen.value(f"F.{'max' if kind == 'max' else 'avg'}_pool{d}d({x}, 2, ceil_mode={ceil})", (ins, *size))


def transposed(pen: Pen, x: str) -> str:
    """A transposed convolution."""
    ins, *sides = pen.shapes[x]
    outs, kernel, stride, padding = (pen.rng.randint(*within) for within in ((1, 5), (1, 4), (1, 3), (0, 1)))
    dilation, groups = pen.rng.choice([1, 1, 2]), pen.rng.choice([g for g in range(1, ins + 1) if ins % g == 0])
    outs = groups * max(1, outs // groups)
    extra = pen.rng.choice([0, 0, 1]) if max(stride, dilation) > 1 else 0
    after = [(side - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1 for side in sides]
    if not 0 < min(after) <= max(after) < 14:
        return x
    made = pen.layer(
        f"nn.ConvTranspose{len(sides)}d({ins}, {outs}, {kernel}, {stride}, {padding}, {extra}, {groups}, "
        f"{pen.maybe(0.6)}, {dilation})"
    )
    return pen.value(f"{made}({x})", (outs, *after))


def interpolated(pen: Pen, x: str) -> str:
    """Interpolation to a size, or by a factor."""
    ins, *sides = pen.shapes[x]
    smooth = "linear" if len(sides) == 1 else "bilinear"
    mode = pen.rng.choice(
        ["", ", mode='nearest-exact'", f", mode='{smooth}'", f", mode='{smooth}', align_corners=True"]
    )
    if pen.maybe(0.4) and max(sides) < 7:
        return pen.value(f"F.interpolate({x}, scale_factor=2{mode})", (ins, *(2 * side for side in sides)))
    size = tuple(pen.rng.randint(1, 9) for _ in sides)
    return pen.value(f"F.interpolate({x}, size={size}{mode})", (ins, *size))


def padded(pen: Pen, x: str) -> str:
    """Padding of every mode and amount."""
    ins, *sides = pen.shapes[x]
    mode = pen.rng.choice(["", "", ", value=0.5", ", mode='reflect'", ", mode='replicate'", ", mode='circular'"])
    amounts = [pen.rng.randint(-1 if "mode" not in mode and side > 3 else 0, 2) for side in sides for _ in range(2)]
    if "mode" in mode:
        amounts = [min(each, sides[number // 2] - 1) for number, each in enumerate(amounts)]
    after = [side + amounts[2 * number] + amounts[2 * number + 1] for number, side in enumerate(sides)]
    last_first = [each for number in reversed(range(len(sides))) for each in amounts[2 * number : 2 * number + 2]]
    return pen.value(f"F.pad({x}, {tuple(last_first)}{mode})", (ins, *after))


def shuffled(pen: Pen, x: str) -> str:
    """Pixel shuffles, and channels in another order (Zhang et al. 2018)."""
    ins, *sides = shape = pen.shapes[x]
    if len(sides) == 2 and ins % 4 == 0 and max(sides) < 7:
        return pen.value(f"F.pixel_shuffle({x}, 2)", (ins // 4, *(2 * side for side in sides)))
    if len(sides) == 2 and all(side % 2 == 0 for side in sides) and ins < 4:
        return pen.value(f"F.pixel_unshuffle({x}, 2)", (4 * ins, *(side // 2 for side in sides)))
    if len(sides) == 2 and ins % 2 == 0 and pen.maybe(0.1):
        return pen.value(f"F.channel_shuffle({x}, 2)", shape)
    return layer(pen, x, pen.rng.choice([4, 8])) if len(sides) == 2 else x


def excited(pen: Pen, x: str) -> str:
    """Squeeze-and-excite (Hu et al. 2018): a gate for each channel, or for each place."""
    ins, *sides = shape = pen.shapes[x]
    d, dims = len(sides), tuple(range(2, 2 + len(sides)))
    one = (1,) * d
    pooled = pen.rng.choice([f"F.adaptive_avg_pool{d}d({x}, 1)", f"{x}.mean({dims}, keepdim=True)"])
    less = pen.rng.randint(1, 3)
    down, up = pen.layer(f"nn.Conv{d}d({ins}, {less}, 1)"), pen.layer(f"nn.Conv{d}d({less}, {ins}, 1)")
    gate = pen.value(f"{up}(F.silu({down}({pooled})))", (ins, *one))
    if pen.maybe(0.3):
        places = pen.layer(f"nn.Conv{d}d({ins}, 1, 1)")
        return pen.value(f"{x} * torch.sigmoid({places}({x})) + {gate}", shape)
    form = pen.rng.choice(["torch.sigmoid({})", "F.hardsigmoid({})", "{}.tanh()"]).format(gate)
    return pen.value(f"{x} * {form}" if pen.maybe(0.5) else f"{form} * {x}", shape)


#: What keeps a value's shape, and turns on no comparison.
KEEPING = (
    "{0} * {0}.mean(1, keepdim=True)", "{0} + {0}[:, :1]", "{0} / (1.5 + {0} * {0})", "{0}.flip(2)", "{0}.roll(1, 2)",
    "{0}.flip(1)", "{0}.roll(-1, 1)",
    "{0} - {0}.mean(-1, keepdim=True)", "{0} * torch.sigmoid({0}[..., :1])", "({0}.square() + 0.5).sqrt()",
    "torch.where({0} > 0, {0}, 0.2 * {0})", "{0} ** 3 / 5", "{0} * {0}.softmax(1)", "torch.exp(-{0}.square())",
    "{0}.flip(-1)", "{0}.roll(-2, -1)", "torch.cat([{0}[..., 1:], {0}[..., :1]], -1)",
    "{0} / {0}.square().sum(1, keepdim=True).add(0.5).sqrt()", "{0}.masked_fill({0} < 0, 0.0)",
    "{0} * {0}.amax(1, True)", "{0} - {0}.amin(-1, True)", "{0} + {0}.amax((1, 2), True)", "{0}.clamp(min=-0.5)",
    "{0}.abs() - 1", "F.softplus({0}, 3)", "F.mish({0})", "torch.minimum({0}, {0}.mean(1, True))",
    "F.softshrink({0}, 0.2) + F.threshold({0}, 0.1, 0.1)", "F.logsigmoid({0})",
    "torch.cat([{0}[:, 1:], {0}[:, :1]], 1)", "{0}.transpose(-1, -2).contiguous().transpose(-1, -2)",
)  # fmt: skip
#: What the sparse engine has no rule for.
STRANGE = ("{0} * {0}.cos()", "torch.erf({0})", "torch.sin({0}) - 1", "{0}.cumsum(-1)")


def kept(pen: Pen, x: str) -> str:
    """An operation by hand, with a parameter that is broadcast or none."""
    shape = pen.shapes[x]
    if pen.maybe(0.03):
        return pen.value(pen.rng.choice(STRANGE).format(x), shape)
    if pen.maybe(0.3):
        sizes = [pen.rng.choice([1, each]) for each in shape]
        leaf = pen.layer(f"nn.Parameter(torch.randn({pen.rng.choice([sizes, sizes[-1:], [1, *sizes]])}))")
        return pen.value(pen.rng.choice([f"{x} * {leaf}", f"{leaf} + {x}", f"{leaf} - {x}"]), shape)
    return pen.value(pen.rng.choice(KEEPING).format(x), shape)


def normed(pen: Pen, x: str) -> str:
    """Normalisation of images, or of sequences."""
    channels, *sides = shape = pen.shapes[x]
    if len(sides) == 2:
        return norm(pen, x)
    if pen.maybe(0.6) and pen.batch * sides[0] > 4:
        return pen.value(f"{pen.layer(f'nn.BatchNorm1d({channels})')}({x})", shape)
    groups = pen.rng.choice([g for g in range(1, channels + 1) if channels % g == 0])
    return pen.value(f"{pen.layer(f'nn.GroupNorm({groups}, {channels})')}({x})", shape) if sides[0] > 2 else x


def added(pen: Pen, x: str) -> str:
    """A residual connection around a few layers."""
    shape = pen.shapes[x]
    y = act(pen, normed(pen, layer(pen, x, shape[0])))
    y = chosen(pen.rng, {layer: 2, excited: 2, kept: 1})(pen, y)
    y = layer(pen, y, shape[0]) if pen.shapes[y] != shape else y
    return pen.value(pen.rng.choice(["{0} + {1}", "{1} + {0}", "torch.relu({1} + {0})"]).format(x, y), shape)


def u_shaped(pen: Pen, x: str) -> str:
    """Down, up to the same size, and joined (Ronneberger et al. 2015)."""
    ins, *sides = pen.shapes[x]
    if min(sides) < 4:
        return x
    d = len(sides)
    low = pen.value(f"F.max_pool{d}d({x}, 2)", (ins, *(side // 2 for side in sides)))
    low = act(pen, normed(pen, layer(pen, low)))
    if all(side % 2 == 0 for side in sides) and pen.maybe(0.5):
        outs = pen.rng.randint(1, 4)
        up = pen.layer(f"nn.ConvTranspose{d}d({pen.shapes[low][0]}, {outs}, 2, 2)")
        high = pen.value(f"{up}({low})", (outs, *sides))
    else:
        high = pen.value(f"F.interpolate({low}, size={x}.shape[2:])", (pen.shapes[low][0], *sides))
    joined = pen.value(f"torch.cat([{x}, {high}], 1)", (ins + pen.shapes[high][0], *sides))
    return layer(pen, joined)


def drawn_on(pen: Pen, x: str) -> str:
    """Some steps of pixels."""
    steps = {
        layer: 3, strided: 2, transposed: 3, interpolated: 2, padded: 2, shuffled: 2, excited: 2, kept: 3, normed: 1,
        added: 3, u_shaped: 2, act: 2,
    }  # fmt: skip
    for _ in range(pen.rng.randint(2, 5)):
        x = chosen(pen.rng, steps)(pen, x)
    return x


def flattened(pen: Pen, x: str) -> str:
    """(n, features)."""
    channels, *sides = pen.shapes[x]
    if len(sides) == 2:
        return network_steps.flattened(pen, x)
    if channels * sides[0] > 150:
        x = pen.value(f"F.adaptive_avg_pool1d({x}, 3)", (channels, 3))
    return pen.value(f"{x}.flatten(1)", (channels * pen.shapes[x][1],))
