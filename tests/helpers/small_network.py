"""The undefended classifier with the smallest network, for what stands in front of one in tests on 32×32 images."""

from __future__ import annotations

from bench.contracts.inputs import DataInfo
from defenses.none import Undefended


class Small(Undefended):
    """:class:`Undefended` with a ResNet-8."""

    def __init__(self, data: DataInfo) -> None:
        super().__init__(data, network="resnet8")
