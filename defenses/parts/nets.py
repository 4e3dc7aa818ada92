"""Networks for the built-in defenses. Inputs are in [0, 1]; nothing is normalised outside a network.

All classifiers pool globally (or adaptively) before the last layer, so that a transform may change the image size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.contracts.errors import InputError, did_you_mean
from bench.contracts.inputs import DataInfo


def classifier_for(info: DataInfo, network: str = "auto") -> nn.Module:
    """The classification network f: logits ``(N, num_classes)`` from ``(N, C, H, W)``, or of waveforms ``(N, C, T)``.

    Args:
        info: of the data.
        network: ``auto`` is ``compact`` from 32 pixels on, ResNet-18 from 64 pixels on, below 32 a plain
            convolutional network, small below 16 pixels; all take any H and W near the nominal. Of waveforms it is a
            :class:`WaveCNN`. Other names are those of ``NETWORKS``, and ``torchvision.<name>`` for any classifier of
            torchvision, untrained.

    Raises:
        InputError: for an unknown name, or that of a network of images where inputs are waveforms.
    """
    if info.input.kind == "waveform":
        if network != "auto":
            raise InputError(f"network {network!r} takes images; the inputs of {info.name} are waveforms")
        return WaveCNN(info.shape[0], info.num_classes)
    if network.startswith(_TORCHVISION):
        return _from_torchvision(network.removeprefix(_TORCHVISION), info)
    if network != "auto":
        if network not in NETWORKS:
            raise InputError(f"network {network!r} does not exist{did_you_mean(network, ['auto', *NETWORKS])}")
        return NETWORKS[network](info)
    channels, size = info.shape[0], min(info.shape[1:])
    if size >= 32:
        return NETWORKS["compact" if is_compact(info, network) else "resnet18"](info)
    return SmallCNN(channels, info.num_classes, width=16 if size < 16 else 32)


_TORCHVISION = "torchvision."


def is_compact(info: DataInfo, network: str) -> bool:
    """Whether :func:`classifier_for` answers with a :class:`CompactResNet`."""
    if network != "auto":
        return network == "compact"
    return info.input.kind == "image" and 32 <= min(info.shape[1:]) < 64


def _from_torchvision(name: str, info: DataInfo) -> nn.Module:
    import torchvision  # here: it takes as long as PyTorch itself, in every process that opens a defense

    available = torchvision.models.list_models(module=torchvision.models)
    if name not in available:
        raise InputError(f"network 'torchvision.{name}' does not exist{did_you_mean(name, available)}")
    if info.shape[0] != 3:
        raise InputError(f"network 'torchvision.{name}' takes 3 channels; the images have {info.shape[0]}")
    network: nn.Module = torchvision.models.get_model(name, num_classes=info.num_classes)
    return network


def external_for(info: DataInfo, width: float = 1.0) -> nn.Module:
    """The external network of the adversarial transformation: Table 4 of Xiao & Zheng 2020 from 16 pixels on.

    Below that a VGG-style network in proportion. It takes images of the nominal size only. ``width`` multiplies the
    channels of all layers but the last.
    """
    layers, hidden = (_TABLE_4, 512) if min(info.shape[1:]) >= 16 else ((16, "M", 32, 32, "M"), 64)
    scaled = tuple(layer if isinstance(layer, str) else round(width * layer) for layer in layers)
    return VGG(info, scaled, round(width * hidden))


_TABLE_4: tuple[int | str, ...] = (64, "M", 128, "M", 128, 128, "M", 128, 128, "M")


def replace(network: nn.Module, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Replace every submodule of a ``kind`` by ``make(submodule)``, in place, in order; returns the network.

    All networks of this file apply their activations as modules, so that a defense can take another one.
    """
    for name, child in list(network.named_children()):
        if isinstance(child, kind):
            setattr(network, name, make(child))
        else:
            replace(child, kind, make)
    return network


class _Network(nn.Sequential):
    """Layers in a row that see images in channels-last order on a CPU, where convolutions are 1.3 to 1.7 times as
    fast that way."""

    def forward(self, x: Tensor) -> Tensor:
        x = _channels_last(x) if x.device.type == "cpu" else x
        for layer in self:
            x = layer(x)
        return x


def _channels_last(x: Tensor) -> Tensor:
    # With one channel both orders are one and the same to ``contiguous``; convolutions go by the strides.
    _, channels, height, width = x.shape
    strides = (channels * height * width, 1, channels * width, channels)
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)


def _conv_bn_relu(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


class SmallCNN(_Network):
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


class WaveCNN(nn.Sequential):
    """Four convolutions in time of stride 4 with batch norm, the mean over time and a linear layer.

    In the manner of the smallest network of Dai et al. 2017 (Very Deep Convolutional Neural Networks for Raw
    Waveforms), with strides in place of its max-pools and a first filter that suits short waveforms too.

    Args:
        channels: of the waveforms; num_classes: of the logits.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        layers: list[nn.Module] = []
        for outputs in (32, 64, 64, 128):
            layers += [
                nn.Conv1d(channels, outputs, 9, stride=4, padding=4, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(),
            ]  # fmt: skip
            channels = outputs
        super().__init__(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(channels, num_classes))


class VGG(_Network):
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
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)) + self.shortcut(x))
        return out


class _PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each of two 3×3 convolutions (He et al. 2016, Identity Mappings, figure 1b).

    Where the shape changes, the shortcut is a 1×1 convolution of the activated input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu1(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        out: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(activated)))) + shortcut
        return out


def _stages(
    block: Callable[[int, int, int], nn.Module], inputs: int, widths: tuple[int, ...], blocks: int
) -> list[nn.Module]:
    """``blocks`` residual blocks of each width; every width but the first halves height and width of the image."""
    layers = []
    for stage, outputs in enumerate(widths):
        for number in range(blocks):
            layers.append(block(inputs, outputs, 2 if stage and not number else 1))
            inputs = outputs
    return layers


class ResNet(_Network):
    """A residual network as used on CIFAR: 3×3 stem of stride 1, no max-pool, global average pooling.

    ResNet-18 has two blocks at each of 64, 128, 256 and 512 channels, ResNet-(6n+2) n at each of 16, 32 and 64
    (He et al. 2016, section 4.2).
    """

    def __init__(self, info: DataInfo, widths: tuple[int, ...], blocks: int) -> None:
        super().__init__(
            *_conv_bn_relu(info.shape[0], widths[0]),
            *_stages(_BasicBlock, widths[0], widths, blocks),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(widths[-1], info.num_classes),
        )


class CompactResNet(_Network):
    """A residual network for two cores: ResNet-8 whose stem halves the image, and which is wider for that.

    24 million multiplications for 32×32 colour, 0.48 million weights. Of networks of about this cost it was the
    fastest on a CPU, whose convolutions like channels better than pixels.
    """

    def __init__(self, info: DataInfo, widths: tuple[int, ...] = (48, 96, 144)) -> None:
        super().__init__(
            nn.Conv2d(info.shape[0], widths[0], 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
            *_stages(_BasicBlock, widths[0], widths, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(widths[-1], info.num_classes),
        )


class PreActResNet(_Network):
    """A residual network with pre-activation blocks; with 16 channels in the stem and three widths a wide ResNet.

    Zagoruyko & Komodakis 2016: WRN-d-k has (d - 4) / 6 blocks at each of 16k, 32k and 64k channels.
    """

    def __init__(self, info: DataInfo, stem: int, widths: tuple[int, ...], blocks: int) -> None:
        super().__init__(
            nn.Conv2d(info.shape[0], stem, 3, padding=1, bias=False),
            *_stages(_PreActivationBlock, stem, widths, blocks),
            nn.BatchNorm2d(widths[-1]),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(widths[-1], info.num_classes),
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


def _wide_resnet(depth: int, factor: int) -> Callable[[DataInfo], nn.Module]:
    return lambda info: PreActResNet(info, 16, (16 * factor, 32 * factor, 64 * factor), (depth - 4) // 6)


#: Networks that a defense's ``network`` parameter can name besides ``auto`` and those of torchvision.
NETWORKS: dict[str, Callable[[DataInfo], nn.Module]] = {
    "cnn-a": CNNA,
    "compact": CompactResNet,
    "resnet8": lambda info: ResNet(info, (16, 32, 64), 1),
    "resnet18": lambda info: ResNet(info, (64, 128, 256, 512), 2),
    "resnet14": lambda info: ResNet(info, (16, 32, 64), 2),
    "resnet20": lambda info: ResNet(info, (16, 32, 64), 3),
    "resnet32": lambda info: ResNet(info, (16, 32, 64), 5),
    "preact-resnet18": lambda info: PreActResNet(info, 64, (64, 128, 256, 512), 2),
    "wrn-28-10": _wide_resnet(28, 10),
    "wrn-32-10": _wide_resnet(32, 10),
    "wrn-34-10": _wide_resnet(34, 10),
    "vgg": lambda info: VGG(info, _TABLE_4, hidden=512),
    "vgg16": lambda info: VGG(
        info,
        (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
        hidden=512,
    ),
}
