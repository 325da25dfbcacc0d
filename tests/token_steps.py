"""The steps that random networks of tokens begin with: values are (n, length, width), shapes (length, width)."""

from __future__ import annotations

from network_steps import ACTIVATIONS, Pen

#: Rotations of queries and keys (Su et al. 2021), as people write them; in the code of every network.
FUNCTIONS = """
def angles(x):
    rates = 10.0 ** -(torch.arange(0, x.shape[-1], 2) / x.shape[-1])
    return torch.outer(torch.arange(x.shape[-2]), rates).to(x.dtype)


def by_halves(x):
    table = torch.cat([angles(x)] * 2, -1)
    first, second = x.chunk(2, -1)
    return x * table.cos() + torch.cat((-second, first), -1) * table.sin()


def interleaved(x):
    cos, sin = angles(x).cos(), angles(x).sin()
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def band(length, dtype):
    near = (torch.arange(length)[:, None] - torch.arange(length)).abs() <= 1
    return torch.zeros(length, length, dtype=dtype).masked_fill(~near, -torch.inf)
"""


def tokens_of(pen: Pen, x: str, vocabulary: int, width: int) -> str:
    """Numbers of tokens (n, length) as vectors; which of them are no padding is known as `seen`."""
    (length,) = pen.shapes[x]
    padding = pen.rng.choice(["", "", ", padding_idx=0"])
    found = pen.value(f"{pen.layer(f'nn.Embedding({vocabulary}, {width}{padding})')}({x})", (length, width))
    pen.lines.append(f"seen = {x} != 0" if pen.maybe(0.5) else f"seen = {x}.ne(0)")
    pen.shapes["seen"] = (length,)
    return found


def padded(pen: Pen, length: int) -> bool:
    """Whether these are the places whose tokens are known."""
    return pen.shapes.get("seen") == (length,)


def projected(pen: Pen, x: str, width: int) -> str:
    """Numbers (n, length · ins) as vectors of a linear layer."""
    (numbers,) = pen.shapes[x]
    ins = pen.rng.choice([each for each in (1, 2, 3, 4) if numbers % each == 0])
    forms = f"{x}.unflatten(1, (-1, {ins}))", f"{x}.view({x}.shape[0], {numbers // ins}, {ins})"
    return linear(pen, pen.value(pen.rng.choice(forms), (numbers // ins, ins)), width)


def patches(pen: Pen, x: str, width: int) -> str:
    """An image as vectors of a convolution whose stride is its kernel (Dosovitskiy et al. 2021)."""
    channels, *sides = pen.shapes[x]
    size = pen.rng.choice([2, 3])
    length = (sides[0] // size) * (sides[1] // size)
    conv = pen.layer(f"nn.Conv2d({channels}, {width}, {size}, {size})")
    return pen.value(f"{conv}({x}).flatten(2).transpose(1, 2)", (length, width))


def placed(pen: Pen, x: str) -> str:
    """A table of places added, then perhaps a class token before all others."""
    length, width = shape = pen.shapes[x]
    more = length + pen.rng.randint(0, 2)
    kind = pen.rng.choice(["table", "longer table", "embedding", "buffer", "sines", "none"])
    if kind == "table":
        x = pen.value(f"{x} + {pen.layer(f'nn.Parameter(torch.randn(1, {length}, {width}))')}", shape)
    elif kind == "longer table":
        x = pen.value(f"{x} + {pen.layer(f'nn.Parameter(torch.randn({more}, {width}))')}[:{x}.shape[1]]", shape)
    elif kind == "embedding":
        table = pen.layer(f"nn.Embedding({more}, {width})")
        x = pen.value(f"{x} + {table}(torch.arange({x}.shape[1]))", shape)
    elif kind == "buffer":
        x = pen.value(f"{x} + {pen.layer(f'nn.Buffer(torch.randn({more}, {width}))')}[:{length}]", shape)
    elif kind == "sines" and width % 2 == 0:
        x = pen.value(f"{x} + torch.cat([angles({x}).sin(), angles({x}).cos()], -1)", shape)
    if pen.maybe(0.25):
        first = pen.layer(f"nn.Parameter(torch.randn(1, 1, {width}))")
        form = pen.rng.choice(["expand", "repeat"])
        sizes = f"len({x}), -1, -1" if form == "expand" else f"{x}.shape[0], 1, 1"
        x = pen.value(f"torch.cat([{first}.{form}({sizes}), {x}], 1)", (length + 1, width))
    return x


def linear(pen: Pen, x: str, outs: int) -> str:
    """A linear layer of each token."""
    length, ins = pen.shapes[x]
    if ins == outs and pen.maybe(0.05):
        form = pen.rng.choice(["{} @ {}", "torch.einsum('nlw,wo->nlo', {}, {})", "torch.einsum('...w,ow', {}, {})"])
        weight = pen.layer(f"nn.Parameter(torch.randn({ins}, {outs}) / 4)")
        return pen.value(form.format(x, weight), (length, outs))
    return pen.value(f"{pen.layer(f'nn.Linear({ins}, {outs}, bias={pen.maybe(0.7)})')}({x})", (length, outs))


def act(pen: Pen, x: str) -> str:
    kind = pen.rng.choice(["F.gelu({})", "F.gelu({}, approximate='tanh')", "F.silu({})", *ACTIVATIONS])
    return pen.value(kind.replace("{}", f"{x}.clone()" if "inplace" in kind else x), pen.shapes[x])


def norm(pen: Pen, x: str) -> str:
    """Of each token: two numbers around their mean are 1 and -1 whatever they are, so there are three or more."""
    shape = length, width = pen.shapes[x]
    if width < 3:
        return x
    kind = pen.rng.choice(["layer"] * 4 + ["root"] * 3 + ["root by hand", "layer by hand", "batch", "group"])
    if kind == "layer":
        return pen.value(f"{pen.layer(f'nn.LayerNorm({width})')}({x})", shape)
    if kind == "root":
        return pen.value(f"{pen.layer(f'nn.RMSNorm({width}, eps=1e-5)')}({x})", shape)
    if kind == "root by hand":
        scale = pen.layer(f"nn.Parameter(torch.rand({width}) + 0.5)")
        root = pen.rng.choice(["{0} * torch.rsqrt({0}.pow(2).mean(-1, keepdim=True) + 1e-3)",
                               "{0} / ({0}.square().mean(-1, True) + 1e-3).sqrt()",
                               "{0} * ({0} * {0}).mean(-1, keepdim=True).add(1e-3) ** -0.5"])  # fmt: skip
        return pen.value(f"{scale} * ({root.format(x)})", shape)
    if kind == "layer by hand":
        centred = pen.value(f"{x} - {x}.mean(-1, keepdim=True)", shape)
        return pen.value(f"{centred} / ({centred}.square().mean(-1, keepdim=True) + 1e-2).sqrt()", shape)
    if kind == "batch" and pen.batch * length > 4:
        made = pen.layer(f"nn.BatchNorm1d({width})")
        return pen.value(f"{made}({x}.transpose(1, 2)).transpose(1, 2)", shape)
    groups = pen.rng.choice([each for each in range(1, width + 1) if width % each == 0 and width // each * length > 2])
    return pen.value(f"{pen.layer(f'nn.GroupNorm({groups}, {width})')}({x}.mT).mT", shape)
