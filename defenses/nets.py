"""Networks for the built-in defenses. Inputs are in [0, 1]; nothing is normalised outside a network.

All classifiers pool globally (or adaptively) before the last layer, so that a transform may change the image size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from bench.defense import DataInfo
from bench.errors import InputError, did_you_mean


def classifier_for(info: DataInfo, network: str = "auto") -> nn.Module:
    """The classification network f: logits ``(N, num_classes)`` from ``(N, C, H, W)``.

    Args:
        info: of the data.
        network: ``auto`` is ResNet-18 from 32 pixels on, below that a plain convolutional network, small below 16
            pixels; both take any H and W near the nominal. Other names are those of ``NETWORKS``.

    Raises:
        InputError: for an unknown name.
    """
    if network != "auto":
        if network not in NETWORKS:
            raise InputError(f"network {network!r} does not exist{did_you_mean(network, ['auto', *NETWORKS])}")
        return NETWORKS[network](info)
    channels, size = info.shape[0], min(info.shape[1:])
    if size >= 32:
        return ResNet18(channels, info.num_classes)
    return SmallCNN(channels, info.num_classes, width=16 if size < 16 else 32)


def external_for(info: DataInfo) -> nn.Module:
    """The external network of the adversarial transformation: Table 4 of Xiao & Zheng 2020 from 16 pixels on.

    Below that a VGG-style network in proportion. It takes images of the nominal size only.
    """
    if min(info.shape[1:]) >= 16:
        return VGG(info, (64, "M", 128, "M", 128, 128, "M", 128, 128, "M"), hidden=512)
    return VGG(info, (16, "M", 32, 32, "M"), hidden=64)


def _conv_bn_relu(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


class SmallCNN(nn.Sequential):
    """Four 3×3 convolutions with batch norm, one max-pool, average pooling to 2×2 and a linear layer.

    Args:
        channels: of the images; num_classes: of the logits.
        width: channels of the first layer; the last has four times as many.
    """

    def __init__(self, channels: int, num_classes: int, width: int) -> None:
        super().__init__(
            *_conv_bn_relu(channels, width),
            *_conv_bn_relu(width, 2 * width),
            nn.MaxPool2d(2),
            *_conv_bn_relu(2 * width, 2 * width),
            *_conv_bn_relu(2 * width, 4 * width),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * width, num_classes),
        )


class VGG(nn.Sequential):
    """Convolutions (numbers: channels) and max-pools (``"M"``), then hidden linear layers with dropout.

    The order within a hidden layer is that of Xiao & Zheng 2020, Table 4: linear, ReLU, dropout.
    """

    def __init__(self, info: DataInfo, layers: tuple[int | str, ...], hidden: int) -> None:
        channels, height, width = info.shape
        modules: list[nn.Module] = []
        for layer in layers:
            if isinstance(layer, int):
                modules += _conv_bn_relu(channels, layer)
                channels = layer
            else:
                modules.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
        modules.append(nn.Flatten())
        for inputs in (channels * height * width, hidden):
            modules += [nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(0.5)]
        super().__init__(*modules, nn.Linear(hidden, info.num_classes))


class _BasicBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut (He et al. 2016, figure 2), projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet18(nn.Sequential):
    """ResNet-18 (He et al. 2016) as used on CIFAR: 3×3 stem of stride 1, no max-pool, global average pooling."""

    def __init__(self, channels: int, num_classes: int) -> None:
        blocks: list[nn.Module] = []
        inputs = 64
        for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [_BasicBlock(inputs, outputs, stride), _BasicBlock(outputs, outputs, 1)]
            inputs = outputs
        super().__init__(
            *_conv_bn_relu(channels, 64),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(512, num_classes),
        )


class CNNA(nn.Sequential):
    """CNN-A of Dathathri et al. 2020 (arXiv:2010.11645): two strided convolutions, two linear layers, no batch norm.

    Small enough that complete verifiers decide most images, so that an attack can be measured against the truth.
    It takes images of the nominal size only.
    """

    def __init__(self, info: DataInfo) -> None:
        channels, height, width = info.shape
        super().__init__(
            nn.Conv2d(channels, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * (height // 4) * (width // 4), 100),
            nn.ReLU(),
            nn.Linear(100, info.num_classes),
        )


class ResNet8(nn.Sequential):
    """ResNet-8 (He et al. 2016, section 4.2, n = 1): one basic block at each of 16, 32 and 64 channels."""

    def __init__(self, info: DataInfo) -> None:
        super().__init__(
            *_conv_bn_relu(info.shape[0], 16),
            _BasicBlock(16, 16, 1),
            _BasicBlock(16, 32, 2),
            _BasicBlock(32, 64, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, info.num_classes),
        )


#: Networks that a defense's ``network`` parameter can name besides ``auto``.
NETWORKS: dict[str, Callable[[DataInfo], nn.Module]] = {
    "cnn-a": CNNA,
    "resnet8": ResNet8,
    "resnet18": lambda info: ResNet18(info.shape[0], info.num_classes),
}
