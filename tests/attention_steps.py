"""Attention of random networks, in the forms that people write."""

from __future__ import annotations

from network_steps import Pen
from token_steps import linear, padded


def heads_of(pen: Pen, width: int) -> tuple[int, int]:
    """(heads, features of each)."""
    heads = pen.rng.choice([1, 2, 2, 3, 4])
    return heads, width // heads if width % heads == 0 and pen.maybe(0.5) else pen.rng.choice([1, 2, 3, 4, 8])


def split(pen: Pen, x: str, heads: int, each: int) -> str:
    """(n, length, heads · features) as heads."""
    length, _ = pen.shapes[x]
    forms = ("{0}.view(len({0}), -1, {1}, {2}).transpose(1, 2)", "{0}.unflatten(-1, ({1}, {2})).transpose(1, 2)",
             "{0}.reshape({0}.shape[0], {0}.shape[1], {1}, {2}).permute(0, 2, 1, 3)")  # fmt: skip
    return pen.value(pen.rng.choice(forms).format(x, heads, each), (heads, length, each))


def operands(pen: Pen, x: str, heads: int, shared: int, each: int) -> list[str]:
    """Queries, keys and values as heads, of one layer or of three."""
    if heads == shared and pen.maybe(0.5):
        length, _ = pen.shapes[x]
        three = linear(pen, x, 3 * heads * each)
        if pen.maybe(0.5):
            q = pen.value(f"{three}.view(len({x}), {length}, 3, {heads}, {each}).permute(2, 0, 3, 1, 4)", ())
            return [pen.value(f"{q}[{number}]", (heads, length, each)) for number in range(3)]
        names = [f"v{len(pen.shapes) + number}" for number in range(3)]
        pen.lines.append(f"{', '.join(names)} = {three}.chunk(3, dim=-1)")
        pen.shapes.update(dict.fromkeys(names, (length, heads * each)))
        return [split(pen, name, heads, each) for name in names]
    return [split(pen, linear(pen, x, count * each), count, each) for count in (heads, shared, shared)]


def weighed(pen: Pen, scores: str, shape: tuple[int, ...]) -> str:
    """Scores (n, heads, length, length), perhaps masked."""
    length = shape[-1]
    masks = [
        "{0}", "{0}", "{0} + torch.full((%d, %d), -torch.inf).triu(1).to({0}.dtype)",
        "{0}.masked_fill(torch.ones(%d, %d, dtype=torch.bool).triu(1), -torch.inf)", "{0} + band(%d, {0}.dtype)",
        "torch.where(torch.tril(torch.ones(%d, %d)) == 1, {0}, torch.finfo({0}.dtype).min)",
    ]  # fmt: skip
    if padded(pen, length):
        masks += ["{0}.masked_fill(~seen[:, None, None], -1e9)", "torch.where(seen[:, None, None, :], {0}, -1e9)",
                  "{0} + (1.0 - seen.to({0}.dtype))[:, None, None, :] * -1e4"]  # fmt: skip
    mask = pen.rng.choice(masks)
    return pen.value((mask % ((length,) * mask.count("%d"))).format(scores), shape)


def fused(pen: Pen, q: str, k: str, v: str) -> str:
    """`scaled_dot_product_attention`, of all, causal, or under a mask."""
    heads, length, _ = pen.shapes[q]
    masks = [
        "",
        "",
        ", is_causal=True",
        ", is_causal=True",
        f", attn_mask=torch.ones({length}, {length}, dtype=torch.bool).tril()",
        f", attn_mask=band({length}, {q}.dtype)",
        f", attn_mask=torch.linspace(-1, 1, {heads}).to({q}.dtype)[:, None, None] + band({length}, {q}.dtype)",
    ]
    if padded(pen, length):
        masks += [
            ", attn_mask=seen[:, None, None, :]",
            ", attn_mask=seen[:, None, None]",
            f", attn_mask=seen[:, None, None] & torch.ones({length}, {length}, dtype=torch.bool).tril()",
        ]
    gqa = ", enable_gqa=True" if pen.shapes[k][0] != heads else ""
    scale = pen.rng.choice(["", "", ", scale=0.7"])
    drop = pen.rng.choice(["", "", ", dropout_p=0.0"])
    mask = pen.rng.choice(masks)
    return pen.value(f"F.scaled_dot_product_attention({q}, {k}, {v}{mask}{drop}{scale}{gqa})", pen.shapes[q])


def by_hand(pen: Pen, q: str, k: str, v: str) -> str:
    """Products and a softmax, with heads as a dimension or within the batch."""
    heads, length, each = pen.shapes[q]
    shared = pen.shapes[k][0]
    if shared != heads:
        times = heads // shared
        wide = (heads, length, each)
        form = pen.rng.choice([
            f"{{0}}.repeat_interleave({times}, dim=1)",
            f"{{0}}[:, :, None].expand(-1, -1, {times}, -1, -1).reshape(len({{0}}), {heads}, {length}, {each})",
        ])  # fmt: skip
        k, v = (pen.value(form.format(name), wide) for name in (k, v))
    if pen.maybe(0.2):
        rows = [pen.value(f"{name}.flatten(0, 1)", ()) for name in (q, k, v)]
        mixed = f"torch.bmm(torch.softmax(torch.bmm({rows[0]}, {rows[1]}.mT) * 0.4, -1), {rows[2]})"
        return pen.value(f"{mixed}.unflatten(0, (-1, {heads}))", pen.shapes[q])
    product = pen.rng.choice(["{0} @ {1}.transpose(-2, -1) / {2}", "torch.matmul({0}, {1}.mT) * {3}",
                              "({0} * {3}) @ {1}.transpose(2, 3)",
                              "torch.einsum('nhqd,nhkd->nhqk', {0}, {1}) * {3}"])  # fmt: skip
    scores = pen.value(product.format(q, k, each**0.5, each**-0.5), (heads, length, length))
    scores = weighed(pen, scores, (heads, length, length))
    weights = pen.rng.choice(["{}.softmax(-1)", "torch.softmax({}, dim=-1)", "F.softmax({}, -1)"]).format(scores)
    if pen.maybe(0.1):
        weights = f"F.dropout({weights}, 0.0, self.training)"
    mixed = pen.rng.choice(["{} @ {}", "{} @ {}", "torch.einsum('nhqk,nhkd->nhqd', {}, {})"])
    return pen.value(mixed.format(weights, v), (heads, length, each))


def attention(pen: Pen, x: str) -> str:
    """Attention of a sequence to itself, with a layer before and after."""
    length, width = pen.shapes[x]
    if pen.maybe(0.2):
        return multihead(pen, x)
    heads, each = heads_of(pen, width)
    shared = pen.rng.choice([g for g in range(1, heads + 1) if heads % g == 0]) if pen.maybe(0.4) else heads
    q, k, v = operands(pen, x, heads, shared, each)
    if each % 2 == 0 and pen.maybe(0.4):
        rotary = pen.rng.choice(["by_halves", "interleaved"])
        q, k = (pen.value(f"{rotary}({name})", pen.shapes[name]) for name in (q, k))
    mixed = (fused if pen.maybe(0.6) else by_hand)(pen, q, k, v)
    forms = ["{}.transpose(1, 2).flatten(2)", f"{{}}.transpose(1, 2).reshape(len({x}), {length}, {heads * each})",
             f"{{}}.permute(0, 2, 1, 3).contiguous().view({x}.shape[0], -1, {heads * each})"]  # fmt: skip
    return linear(pen, pen.value(pen.rng.choice(forms).format(mixed), (length, heads * each)), width)


def multihead(pen: Pen, x: str) -> str:
    length, width = pen.shapes[x]
    heads = pen.rng.choice([each for each in (1, 2, 3, 4) if width % each == 0])
    first = pen.maybe(0.7)
    made = pen.layer(f"nn.MultiheadAttention({width}, {heads}, bias={pen.maybe(0.8)}, batch_first={first})")
    given = ["", "", ", need_weights=False", f", attn_mask=band({length}, {x}.dtype)",
             f", attn_mask=torch.ones({length}, {length}, dtype=torch.bool).triu(1), need_weights=False"]  # fmt: skip
    if padded(pen, length):
        given += [", key_padding_mask=~seen", ", key_padding_mask=~seen, need_weights=False"]
    how = pen.rng.choice(given)
    if first:
        return pen.value(f"{made}({x}, {x}, {x}{how})[0]", pen.shapes[x])
    turned = pen.value(f"{x}.transpose(0, 1)", ())
    return pen.value(f"{made}({turned}, {turned}, {turned}{how})[0].transpose(0, 1)", pen.shapes[x])
