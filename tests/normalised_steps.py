"""The steps that random networks of normalised convolutions are made of: chains, blocks, joins."""

from __future__ import annotations

from network_steps import Pen, chosen


def conv(pen: Pen, x: str, outs: int | None = None, stride: int = 1) -> str:
    """A convolution that reads some places around each, mostly as far down as right; mostly without a bias."""
    ins, *sides = pen.shapes[x]
    outs = outs or pen.rng.choice([1, 2, 3, 4, 6, 8, 17])
    kernel, dilation = chosen(pen.rng, {(3, 1): 6, (5, 1): 2, (3, 2): 2, (1, 1): 1, (7, 1): 1, (3, 3): 1, (5, 2): 1})
    padding = dilation * (kernel - 1) // 2
    groups = 1
    if pen.maybe(0.4):
        groups = pen.rng.choice([each for each in range(1, ins + 1) if ins % each == 0 and outs % each == 0])
    shape = f"{kernel}, {stride}, {padding}, {dilation}"
    if kernel > 1 and pen.maybe(0.1):  # it reads places to the sides alone
        shape = f"(1, {kernel}), {stride}, (0, {padding}), {dilation}"
    made = pen.layer(f"nn.Conv2d({ins}, {outs}, {shape}, {groups}, bias={pen.maybe(0.1)})")
    return pen.value(f"{made}({x})", (outs, *((side - 1) // stride + 1 for side in sides)))


def norm(pen: Pen, x: str) -> str:
    """Batch normalisation, where there are numbers enough for it to be one."""
    channels, *sides = shape = pen.shapes[x]
    if pen.batch * sides[0] * sides[1] < 8:
        return x
    return pen.value(f"{pen.layer(f'nn.BatchNorm2d({channels}, affine={pen.maybe(0.85)})')}({x})", shape)


def act(pen: Pen, x: str) -> str:
    """ReLU, sometimes another function or none."""
    form = chosen(pen.rng, {"torch.relu({})": 8, "{}": 2, "F.silu({})": 1, "F.leaky_relu({}, 0.1)": 1})
    return x if form == "{}" else pen.value(form.format(x), pen.shapes[x])


def layer(pen: Pen, x: str, outs: int | None = None) -> str:
    """Convolution, normalisation, activation."""
    return act(pen, norm(pen, conv(pen, x, outs)))


def chain(pen: Pen, x: str) -> str:
    for _ in range(pen.rng.randint(1, 3)):
        x = layer(pen, x)
    return x


def block(pen: Pen, x: str) -> str:
    """He et al. 2016: added to what it was made of, which a shortcut may make fit."""
    outs = pen.shapes[x][0] if pen.maybe(0.6) else pen.rng.choice([2, 4, 7])
    stride = 2 if pen.maybe(0.2) else 1
    y = norm(pen, conv(pen, act(pen, norm(pen, conv(pen, x, outs, stride))), outs))
    if pen.shapes[y] != pen.shapes[x]:
        made = pen.layer(f"nn.Conv2d({pen.shapes[x][0]}, {outs}, 1, {stride}, bias=False)")
        x = norm(pen, pen.value(f"{made}({x})", pen.shapes[y]))
    form = chosen(pen.rng, {"torch.relu({} + {})": 4, "{1} + {0}": 1, "torch.relu({1} + {0})": 1})
    return pen.value(form.format(y, x), pen.shapes[y])


def activated_first(pen: Pen, x: str) -> str:
    """A block whose normalisations come before its convolutions (He et al. 2016)."""
    outs = pen.shapes[x][0]
    y = x
    for _ in range(pen.rng.randint(1, 2)):
        y = conv(pen, act(pen, norm(pen, y)), outs)
    return pen.value(f"{x} + {y}", pen.shapes[x])


def joined(pen: Pen, x: str) -> str:
    """Huang et al. 2017: what a layer gives, beside what it read."""
    channels, *sides = pen.shapes[x]
    if channels > 20:
        return layer(pen, x)
    y = conv(pen, act(pen, norm(pen, x)), pen.rng.randint(1, 4))
    return pen.value(f"torch.cat([{x}, {y}], 1)", (channels + pen.shapes[y][0], *sides))


def separable(pen: Pen, x: str) -> str:
    """Howard et al. 2017: a convolution of each channel, then one of single places."""
    channels, *sides = shape = pen.shapes[x]
    made = pen.layer(f"nn.Conv2d({channels}, {channels}, 3, padding=1, groups={channels}, bias=False)")
    x = act(pen, norm(pen, pen.value(f"{made}({x})", shape)))
    outs = pen.rng.choice([3, 5, 8])
    made = pen.layer(f"nn.Conv2d({channels}, {outs}, 1, bias=False)")
    return act(pen, norm(pen, pen.value(f"{made}({x})", (outs, *sides))))


def fewer(pen: Pen, x: str) -> str:
    """Pooling."""
    channels, *sides = pen.shapes[x]
    form, shape = pen.rng.choice(["F.max_pool2d({}, 2)", "F.avg_pool2d({}, 2)"]), (side // 2 for side in sides)
    return x if min(sides) < 6 else pen.value(form.format(x), (channels, *shape))


def twice(pen: Pen, x: str) -> str:
    """A normalised value that several layers read."""
    x = layer(pen, x)
    y, z = (conv(pen, x, 4) for _ in range(2))
    return pen.value(f"{norm(pen, y)} {pen.rng.choice('+-*')} {act(pen, norm(pen, z))}", pen.shapes[y])


def built(pen: Pen, x: str) -> str:
    """Some of these, one after the other."""
    steps = {chain: 4, block: 4, activated_first: 2, joined: 2, separable: 2, fewer: 1, twice: 1}
    for _ in range(pen.rng.randint(1, 3)):
        x = chosen(pen.rng, steps)(pen, x)
    return x
