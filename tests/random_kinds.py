"""Kinds of random networks beside those of images: of tokens, recurrent, of pixels, of normalised convolutions. Each
writes a network's body."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import normalised_steps
import pixel_steps
import sequence_steps
import token_steps
from network_steps import FLAT_STEPS, FLAT_WEIGHTS, Pen, Shape, chosen


class Body(NamedTuple):
    """What surrounds the lines that a kind wrote.

    shape: of an input. vocabulary: how many tokens there are; 0 where inputs are numbers. targets: the shape of an
    example's classes: (), (length,) or (height, width). classes: how many.
    """

    shape: Shape
    vocabulary: int
    targets: Shape
    classes: int


def tokens(pen: Pen) -> Body:
    """A network of tokens: of texts, of numbers, or of the patches of an image."""
    return _of_sequences(pen, sequence_steps.transformed)


def recurrent(pen: Pen) -> Body:
    """A network with recurrent layers."""
    return _of_sequences(pen, sequence_steps.recurred)


def _of_sequences(pen: Pen, steps: Callable[[Pen, str], str]) -> Body:
    width, vocabulary = pen.rng.choice([3, 4, 6, 8, 12, 12, 16]), 0
    shape: Shape
    source = chosen(pen.rng, {"tokens": 5, "numbers": 2, "patches": 1})
    if source == "tokens":
        vocabulary, shape = pen.rng.randint(3, 20), (pen.rng.randint(1, 11),)
        pen.shapes["x"] = shape
        x = token_steps.tokens_of(pen, "x", vocabulary, width)
    elif source == "numbers":
        pen.shapes["x"] = shape = (pen.rng.choice([4, 6, 12, 15, 24]),)
        x = token_steps.projected(pen, "x", width)
    else:
        pen.shapes["x"] = shape = (pen.rng.randint(1, 3), pen.rng.randint(4, 8), pen.rng.randint(4, 8))
        x = token_steps.patches(pen, "x", width)
    x = steps(pen, token_steps.placed(pen, x))
    if pen.maybe(0.4):
        x = token_steps.norm(pen, x)
    length, now = pen.shapes[x]
    if vocabulary and now == width and pen.maybe(0.4):
        form = pen.rng.choice(["F.linear({}, {})", "{} @ {}.T", "{} @ {}.mT"])
        last = form.format(x, "self.m0.weight")
        pen.lines.append(f"return {last}")
        return Body(shape, vocabulary, (length,), vocabulary)
    classes = pen.rng.randint(2, 6)
    if vocabulary and pen.maybe(0.4):
        pen.lines.append(f"return {pen.layer(f'nn.Linear({now}, {classes})')}({x})")
        return Body(shape, vocabulary, (length,), classes)
    return _classified(pen, sequence_steps.pooled(pen, x), shape, vocabulary, classes)


def pixels(pen: Pen) -> Body:
    """A network of images or of sequences of numbers, which tells the class of each or of each pixel."""
    channels = pen.rng.randint(1, 3)
    flat = pen.maybe(0.3)
    sides = [pen.rng.randint(4, 12)] if flat else [pen.rng.randint(3, 8) for _ in range(2)]
    shape: Shape = (channels, *sides)
    pen.shapes["x"] = shape
    x = pixel_steps.drawn_on(pen, pixel_steps.layer(pen, "x"))
    classes = pen.rng.randint(2, 4)
    if not flat and pen.maybe(0.4):
        pen.lines.append(f"return {pen.layer(f'nn.Conv2d({pen.shapes[x][0]}, {classes}, 1)')}({x})")
        return Body(shape, 0, pen.shapes[x][1:], classes)
    return _classified(pen, pixel_steps.flattened(pen, x), shape, 0, classes)


def normalised(pen: Pen) -> Body:
    """A network of convolutions beside batch normalisations, of images of any width and height."""
    shape = (pen.rng.randint(1, 3), pen.rng.randint(3, 14), pen.rng.randint(3, 20))
    pen.shapes["x"] = shape
    x = normalised_steps.built(pen, normalised_steps.layer(pen, "x"))
    return _classified(pen, pixel_steps.flattened(pen, x), shape, 0, pen.rng.randint(2, 4))


def _classified(pen: Pen, x: str, shape: Shape, vocabulary: int, classes: int) -> Body:
    """Layers of features, the last of which gives the classes of an example."""
    for _ in range(pen.rng.randint(0, 2)):
        x = pen.rng.choices(FLAT_STEPS, FLAT_WEIGHTS)[0](pen, x)
    pen.lines.append(f"return {pen.layer(f'nn.Linear({pen.shapes[x][0]}, {classes})')}({x})")
    return Body(shape, vocabulary, (), classes)


#: By the names of the command's option.
KINDS: dict[str, Callable[[Pen], Body]] = {
    "tokens": tokens, "recurrent": recurrent, "pixels": pixels, "normalised": normalised,
}  # fmt: skip
