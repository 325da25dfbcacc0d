"""The steps that random networks of tokens and recurrent ones are made of."""

from __future__ import annotations

from attention_steps import attention
from network_steps import Pen, chosen
from token_steps import act, linear, norm, padded


def gated(pen: Pen, x: str) -> str:
    """Two layers with an activation between them, of which one may be a gate (Shazeer 2020)."""
    length, width = pen.shapes[x]
    inner = pen.rng.choice([3, 8, 17, 24])
    kind = pen.rng.choice(["plain", "plain", "swish", "halves"])
    if kind == "swish":
        gate, up = linear(pen, x, inner), linear(pen, x, inner)
        hidden = pen.value(f"F.silu({gate}) * {up}", (length, inner))
    elif kind == "halves":
        both = pen.value(f"{linear(pen, x, 2 * inner)}.chunk(2, -1)", ())
        hidden = pen.value(f"F.gelu({both}[0]) * {both}[1]", (length, inner))
    else:
        hidden = act(pen, linear(pen, x, inner))
    return linear(pen, hidden, width)


def mixer(pen: Pen, x: str) -> str:
    """Layers over places: linear, a convolution, or a recurrent layer."""
    length, width = shape = pen.shapes[x]
    kind = pen.rng.choice(["linear", "conv", "recurrent", "recurrent"])
    if kind == "recurrent":
        return linear(pen, recurrent(pen, x), width)
    if kind == "conv":
        made = pen.layer(f"nn.Conv1d({width}, {width}, 3, padding=1)")
    else:
        made = pen.layer(f"nn.Linear({length}, {length})")
    return pen.value(f"{made}({x}.transpose(1, 2)).transpose(1, 2)", shape)


def recurrent(pen: Pen, x: str) -> str:
    """A recurrent layer of any kind, from a state of zeros, over sequences in either order."""
    length, width = pen.shapes[x]
    kind, units, first = pen.rng.choice(["LSTM", "GRU", "RNN"]), pen.rng.choice([1, 2, 5, 8, 17]), pen.maybe(0.7)
    both, layers = pen.maybe(0.3), pen.rng.choice([1, 1, 2])
    relu = ", nonlinearity='relu'" if kind == "RNN" and pen.maybe(0.4) else ""
    made = pen.layer(f"nn.{kind}({width}, {units}, {layers}, bias={pen.maybe(0.8)}, batch_first={first}, "
                     f"bidirectional={both}{relu})")  # fmt: skip
    shape = length, units * (1 + both)
    if first:
        return pen.value(f"{made}({x})[0]", shape)
    return pen.value(f"{made}({x}.transpose(0, 1))[0].transpose(0, 1)", shape)


#: What keeps a value's shape, and turns on no comparison: a jump would be rounding's.
KEEPING = (
    "{0} * torch.sigmoid({0}.mean(-1, keepdim=True))", "{0} / (1.5 + {0}.square())", "{0} ** 3 / 4",
    "({0}.square() + 0.5).sqrt()", "{0} - {0}.mean(1, keepdim=True)", "torch.where({0} > 0, {0}, 0.1 * {0})",
    "{0}.masked_fill({0} < 0, 0.0)", "{0} * ({0} > 0)", "torch.exp(-{0}.square())", "{0}.flip(1)", "{0}.roll(1, 1)",
    "{0}.flip((1, 2))", "{0}.roll(-1, 2)",
    "torch.tanh({0}.sum(-1, True)) * {0}", "{0} * {0}.softmax(1)", "{0}.log_softmax(-1)", "1.0 / (2.0 + {0} * {0})",
    "{0} + {0}[:, :1]", "{0} - {0}[:, -1:]", "{0} + {0}.mean((1, 2)).view(-1, 1, 1)", "F.dropout({0}, 0.0)",
    "torch.rsqrt({0}.square() + 1.0) * {0}", "torch.cat([{0}[:, 1:], {0}[:, :1]], 1)", "-{0}",
    "{0}.transpose(1, 2).contiguous().transpose(1, 2)", "0.5 - {0}",
    "torch.cat([{0}[..., :1], {0}[..., 1:]], -1)", "{0} * {0}[:, :, :1].expand(-1, -1, {0}.shape[2])",
    "torch.stack([{0}, -{0}], 1).mean(1)", "{0}.pow(2) - {0}",
    "{0} / 1.7", "({0} @ {0}.mT).tanh() @ {0}", "torch.einsum('nlw,nmw->nlm', {0}, {0}).softmax(-1) @ {0}",
    "{0} + {0}.flatten(1).sum(1).view(-1, 1, 1) / 9", "{0}.reshape({0}.shape[0], -1).view_as({0})",
    "{0}.to({0}.dtype) * 1.0",
    "{0} * torch.linspace(0, 1, {0}.shape[1])[:, None].to({0}.dtype)", "{0}.unbind(1)[0].unsqueeze(1) + {0}",
    "{0}.clamp(-1, 1)", "{0}.abs()", "torch.maximum({0}, 0.5 * {0})", "{0} + {0}.amax(1, True)", "F.softplus({0})",
    "{0} - {0}.max(-1, True).values", "F.mish({0})", "{0} * {0}.amin((1, 2))[:, None, None]",
    "{0}.repeat(1, 2, 1)[:, :{0}.shape[1]]", "{0}.repeat_interleave(2, 1)[:, ::2]",
)  # fmt: skip
#: What the sparse engine has no rule for.
STRANGE = ("{0}.sin()", "{0}.erf()", "torch.hypot({0}, 0.5 + {0})", "{0}.cumsum(1)", "{0} + {0}.logsumexp(1, True)",
           "{0} - {0}.cummax(1).values")  # fmt: skip


def kept(pen: Pen, x: str) -> str:
    """An operation by hand."""
    shape = pen.shapes[x]
    if pen.maybe(0.02):
        return pen.value(pen.rng.choice(STRANGE).format(x), shape)
    if pen.maybe(0.15):
        kind = pen.rng.choice(["torch.randn({1})", "torch.randn({0}, 1)", "torch.randn({0}, {1})", "torch.randn(())"])
        leaf = pen.layer(f"nn.Parameter({kind.format(*shape)})")
        return pen.value(pen.rng.choice([f"{x} * {leaf}", f"{x} + {leaf}", f"{leaf} - {x}"]), shape)
    if padded(pen, shape[0]) and pen.maybe(0.2):
        forms = (
            "{0} * seen.unsqueeze(-1)",
            "{0}.masked_fill(~seen[..., None], 0.5)",
            "torch.where(seen[..., None], {0}, 0.0)",
        )
        return pen.value(pen.rng.choice(forms).format(x), shape)
    return pen.value(pen.rng.choice(KEEPING).format(x), shape)


def resized(pen: Pen, x: str) -> str:
    """Fewer places, more, or another width."""
    length, width = pen.shapes[x]
    kind = pen.rng.choice(["part", "steps", "twice", "stacked", "wider", "interleaved", "linear"])
    if kind == "part" and length > 2:
        return pen.value(f"{x}[:, 1:]", (length - 1, width))
    if kind == "steps" and length > 2:
        return pen.value(f"{x}[:, ::2]", (-(-length // 2), width))
    if kind == "twice":
        return pen.value(f"torch.cat([{x}, {linear(pen, x, width)}], 1)", (2 * length, width))
    if kind == "stacked":
        return pen.value(f"torch.stack([{x}, {linear(pen, x, width)}], 2).flatten(1, 2)", (2 * length, width))
    if kind == "wider":
        return pen.value(f"torch.cat([{x}, {act(pen, x)}], -1)", (length, 2 * width))
    if kind == "interleaved":
        return pen.value(f"{x}.repeat_interleave(2, dim=1)", (2 * length, width))
    return linear(pen, x, pen.rng.choice([3, 8, 12]))


def block(pen: Pen, x: str) -> str:
    """A residual block: normalised before, after, or not."""
    shape = pen.shapes[x]
    if pen.maybe(0.08):
        heads = pen.rng.choice([each for each in (1, 2, 3, 4) if shape[1] % each == 0])
        activation = pen.rng.choice(["relu", "gelu"])
        made = pen.layer(f"nn.TransformerEncoderLayer({shape[1]}, {heads}, {pen.rng.choice([8, 12])}, 0.0, "
                         f"'{activation}', batch_first=True, norm_first={pen.maybe(0.5)})")  # fmt: skip
        return pen.value(f"{made}({x})", shape)
    inner = chosen(pen.rng, {attention: 5, gated: 4, mixer: 2, kept: 1})
    kind = pen.rng.choice(["before", "before", "after", "plain"])
    y = inner(pen, norm(pen, x) if kind == "before" else x)
    if pen.maybe(0.1):
        y = pen.value(f"{y} * {pen.layer(f'nn.Parameter(torch.full(({shape[1]},), 0.3))')}", shape)
    out = pen.value(f"{x} + {y}" if pen.maybe(0.5) else f"{y} + {x}", shape)
    return norm(pen, out) if kind == "after" else out


def transformed(pen: Pen, x: str) -> str:
    """Some steps of tokens."""
    for _ in range(pen.rng.randint(1, 3)):
        x = chosen(pen.rng, {block: 8, norm: 1, act: 1, attention: 1, kept: 3, resized: 2})(pen, x)
    return x


def recurred(pen: Pen, x: str) -> str:
    """Recurrent layers, with other steps between them."""
    for _ in range(pen.rng.randint(1, 2)):
        y = recurrent(pen, x)
        if pen.shapes[y] == pen.shapes[x] and pen.maybe(0.5):
            y = pen.value(f"{x} + {y}", pen.shapes[x])
        x = chosen(pen.rng, {norm: 2, act: 2, kept: 2, resized: 1, block: 1})(pen, y) if pen.maybe(0.6) else y
    return x


def pooled(pen: Pen, x: str) -> str:
    """(n, features) of all tokens."""
    length, width = pen.shapes[x]
    forms = ["{0}[:, 0]", "{0}[:, -1]", "{0}.mean(1)", "{0}.mean(dim=1)", "{0}.sum(1) / 3",
             "F.adaptive_avg_pool1d({0}.transpose(1, 2), 1).flatten(1)",
             "({0}.softmax(1) * {0}).sum(1)", "{0}[:, :2].mean(1)", "{0}.select(1, 0)"]  # fmt: skip
    if padded(pen, length):
        forms += ["({0} * seen[..., None]).sum(1) / seen.sum(1, keepdim=True).clamp(min=1)",
                  "({0} * seen.unsqueeze(-1)).sum(1) / seen.to({0}.dtype).sum(1, True).clamp(min=1)"]  # fmt: skip
    if length * width <= 150 and pen.maybe(0.3):
        return pen.value(f"{x}.flatten(1)", (length * width,))
    return pen.value(pen.rng.choice(forms).format(x), (width,))
