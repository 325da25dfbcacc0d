"""Networks that tell each pixel's class, on the sparse engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sparse_programs import kernels  # noqa: F401
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.trees.model import apply_evaluating, apply_training

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

CLASSES = 3


def images(n: int) -> lf.Dataset:
    """Some pixels without a class."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 2, 8, 16, generator=draw), torch.randint(0, CLASSES, (n, 8, 16), generator=draw)
    y[:, 0, :3] = 255
    return lf.data.from_tensors("pixels", (x, y), (x, y), val=1, classes=CLASSES)


def test_a_step_of_a_u_net() -> None:
    """By SGD at a rate of 1, so that the change is the gradient."""
    data = images(19)
    model = lf.models.unet((2, 8, 16), CLASSES, width=4)
    start = lf.prune(density=0.4)(lf.init(model, seed=3))
    losses: Any = {"loss": lf.pixel_cross_entropy, "metric": lf.mean_iou}
    after = lf.train(
        model, data, optimizer=lf.sgd(1.0), steps=1, batch_size=18, engine=lf.sparse_engine, **losses
    )(start)  # fmt: skip

    def loss(params: dict[str, Tensor]) -> Tensor:
        buffers = {name: leaf.double() if leaf.is_floating_point() else leaf for name, leaf in start.buffers.items()}
        outputs, _ = apply_training(model, params, buffers, data.train.x.double())
        return F.cross_entropy(outputs, data.train.y, ignore_index=255)

    gradients = torch.func.grad(loss)({name: leaf.double() for name, leaf in start.params.items()})
    for name, gradient in gradients.items():
        masked, found = gradient * start.masks.get(name, 1), (start.params[name] - after.params[name]).double()
        assert float((found - masked).abs().max()) <= 1e-4 * float(masked.abs().max()) + 1e-6, name
    trainer = lf.make_trainer(
        model, data, optimizer=lf.sgd(1.0), batch_size=18, engine=lf.sparse_engine, **losses
    )  # fmt: skip
    (measured,) = trainer.engine.measure([after], data.test)
    expected = apply_evaluating(model, after.params, after.buffers, data.test.x)
    assert measured.loss == pytest.approx(float(lf.pixel_cross_entropy(expected, data.test.y)), rel=1e-4)
    assert measured.accuracy == pytest.approx(float(lf.mean_iou(expected, data.test.y)), rel=1e-4)


@pytest.mark.parametrize("batch", [1, 17])
def test_inference(batch: int) -> None:
    model = lf.models.unet((2, 8, 16), CLASSES, width=4)
    state, x = lf.prune(density=0.4)(lf.init(model, seed=3)), torch.randn(batch, 2, 8, 16)
    found = lf.sparse_program(model, state)(x)
    torch.testing.assert_close(found, apply_evaluating(model, state.params, state.buffers, x), rtol=1e-4, atol=1e-5)


def test_the_cross_entropy_of_examples_is_not_one_of_pixels() -> None:
    model = lf.from_module(nn.Conv2d(2, CLASSES, 1))
    with pytest.raises(UserError, match="which only a loss of them takes"):
        program_of(
            captured(model, (2, 4, 4), training=True), *model.init(0), {}, batch=8,
            stored=Stored((2, 4, 4), torch.float32), epilogue=Epilogue("cross_entropy"),
        )  # fmt: skip


def test_other_data_are_refused() -> None:
    x, y = torch.randn(20, 2, 8, 8), torch.randint(0, CLASSES, (20,))
    data = lf.data.from_tensors("images", (x, y), (x, y), val=4, classes=CLASSES)
    with pytest.raises(UserError, match="'unet' tells the class of each pixel, and images has no such targets"):
        lf.models.build_for("unet", data)
