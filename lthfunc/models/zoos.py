"""Networks of other packages, by their names there."""

from __future__ import annotations

from typing import Any

from torch import nn

from lthfunc.errors import UserError, unknown


def of_torchvision(name: str, num_classes: int, **given: Any) -> nn.Module:
    """torchvision's network of that name for classes of images or of pixels, without its weights.

    Raises UserError where there is none.
    """
    from torchvision import models

    of_images, of_pixels = (models.list_models(module=module) for module in (models, models.segmentation))
    if name not in (known := [*of_images, *of_pixels]):
        raise unknown("arch", name, known)
    without = {"weights_backbone": None} if name in of_pixels else {}  # which would be downloaded
    return models.get_model(name, weights=None, num_classes=num_classes, **{**without, **given})


def of_timm(name: str, shape: tuple[int, ...], num_classes: int, **given: Any) -> nn.Module:
    """timm's network of that name, without its weights. Raises UserError where timm is missing."""
    try:
        import timm
    except ImportError as error:
        raise UserError("arch: timm's networks need timm (pip install 'lthfunc[timm]')") from error
    if loading := {*given} & {"checkpoint_path", "pretrained"}:
        raise UserError(
            f"arch_option: {loading.pop()} loads weights, which are then reinitialised; weights FILE.safetensors "
            "starts from a file (lthfunc import FILE makes one of a pickled one), weights DEFAULT from timm's own"
        )
    return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=shape[0], **given)
