"""U-Net: a class for each pixel of an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lthfunc.errors import UserError


class UNet(nn.Module):
    """Ronneberger et al. 2015, fig. 1, with padded convolutions and batch normalisation.

    Outputs (n, classes, height, width). width: channels of the first level, of which each next one has twice as many.
    depth: how often the image is halved. Raises UserError for images that cannot be.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, *, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        channels, height, side = shape
        if height % 2**depth or side % 2**depth:
            raise UserError(f"arch: 'unet' halves images {depth} times (option depth=N), and these are {height}×{side}")
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(_twice(*both) for both in zip([channels, *widths[:-2]], widths[:-1], strict=True))
        self.bottom = _twice(widths[-2], widths[-1])
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * each, each, 2, 2) for each in reversed(widths[:-1]))
        self.join = nn.ModuleList(_twice(2 * each, each) for each in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, classes, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level in self.down:
            kept.append(level(x))
            x = self.pool(kept[-1])
        x = self.bottom(x)
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([kept.pop(), up(x)], 1))
        return self.head(x)


def _twice(ins: int, outs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for each in (ins, outs):
        layers += [nn.Conv2d(each, outs, 3, padding=1, bias=False), nn.BatchNorm2d(outs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
