"""likewise-tiny: pictures at 128 px in, a (n, 512, 8, 8) feature map and its average out.

A plain residual network of dense 3x3 convolutions (basic blocks of He et al., "Deep Residual Learning for
Image Recognition", 2015, with the average-pooled shortcut of He et al., "Bag of Tricks", 2018). Dense
convolutions of few, wide layers run at bfloat16 matrix speed where depthwise ones wait for memory. The last
layer is linear: the average of its map is regressed on its teachers' features (see recipes/tiny).
"""

from typing import Final

from torch import Tensor, nn

from likewise_server.images import Preprocessing

DIM: Final = 512
WIDTHS: Final = (48, 96, 192)
DEPTHS: Final = (1, 2, 2)


PREPROCESSING: Final = Preprocessing(resize=146, crop=128)
"""Resize the short side, crop the centre; ImageNet's mean and deviation, antialiased bilinear resampling."""


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut: (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.conv2 = _conv(outputs, outputs, 3)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.AvgPool2d(stride), *_conv(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map, not negative."""
        out: Tensor = self.conv2(self.relu(self.conv1(x)))
        return self.relu(out.add_(self.shortcut(x)))  # type: ignore[no-any-return]


class Tiny(nn.Module):
    """The network; `features` is the (n, DIM, h / 16, w / 16) map, `forward` its (n, DIM) average."""

    def __init__(self) -> None:
        super().__init__()
        stages: list[nn.Module] = [
            nn.Conv2d(3, WIDTHS[0], 6, 4, 1, bias=False),
            nn.BatchNorm2d(WIDTHS[0]),
            nn.ReLU(inplace=True),
        ]
        inputs = WIDTHS[0]
        for stage, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True)):
            for block in range(depth):
                stages.append(Block(inputs, width, 2 if stage and not block else 1))
                inputs = width
        self.features = nn.Sequential(*stages, nn.Conv2d(inputs, DIM, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Pool the feature map of `x`, (n, 3, h, w) floats with h and w multiples of 16, to (n, DIM)."""
        pooled: Tensor = self.features(x).mean((2, 3))
        return pooled


def build() -> Tiny:
    """Return the network with random weights (PyTorch's default draws), in training mode."""
    return Tiny()
