"""Plugins for the tests of isolation: an honest defense with all that can be asked, and some that misbehave."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.contracts.defense import Approximation, Card, Defense, Guide
from bench.contracts.inputs import DataInfo, InputSpec

INFO = DataInfo("grey", InputSpec((1, 8, 8), levels=17), 10)


class Honest(Defense):
    """A random network behind a transform, with a detector and approximations; ``noise`` makes it randomised."""

    version = 1
    trainable = False
    card = Card(title="Honest", tags=("test",))

    def __init__(self, data: DataInfo, noise: float = 0.0) -> None:
        super().__init__(data)
        draw = torch.Generator().manual_seed(1)
        width = torch.Size(data.shape).numel()
        layers = [nn.Flatten(), nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, data.num_classes)]
        self.classifier = nn.Sequential(*layers)
        with torch.no_grad():
            for parameter in self.classifier.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw) / 4)
        self.noise, self.randomized = noise, noise > 0

    def transform(self, x: Tensor) -> Tensor:
        return torch.tanh(2 * x + self.noise * torch.randn_like(x))

    def detect(self, x: Tensor) -> Tensor:
        return (x - 0.5).square().flatten(1).sum(1)

    def approximations(self) -> dict[str, Approximation]:
        return {"smooth": Approximation(lambda x: x.sigmoid()), "itself": Approximation(self.transform, True)}

    def variants(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {"half": lambda x: torch.tanh(x)}

    def guide(self) -> Guide:
        return Guide(self.classifier, "most-likely", lambda x, label: x + 0.1 * label.view(-1, 1, 1, 1))


class Misbehaves(Honest):
    """Does what ``how`` says once it is asked about a batch whose first value is 0.75."""

    version = 1

    def __init__(self, data: DataInfo, how: str = "") -> None:
        super().__init__(data)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if x.flatten()[0] == 0.75:
            getattr(self, f"_{self.how}")()
        return super().forward(x)

    def _dies(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def _exits(self) -> None:
        print("no more of this", flush=True)
        os._exit(3)

    def _hangs(self) -> None:
        time.sleep(600)

    def _raises(self) -> None:
        raise KeyError("what it wanted")

    def _babbles(self) -> None:
        for file in range(3, 32):
            try:
                sock = socket.socket(fileno=file)
            except OSError:
                continue
            sock.send(b"\xff\xff\xff\xffnonsense")

    def _swallows(self) -> None:
        self.kept = bytearray(1 << 42)


class Remembers(Honest):
    """Knows the first inputs that it is asked about, and answers for the nearest of these from then on."""

    version = 1

    def __init__(self, data: DataInfo) -> None:
        super().__init__(data)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.seen:
            self.seen.append(x.detach().clone())
        nearest = torch.cdist(x.detach().flatten(1), self.seen[0].flatten(1)).argmin(1)
        return super().forward(self.seen[0][nearest] + 0 * x)


class Listens(Honest):
    """Answers otherwise once it has been asked a few times without a gradient being taken: as a judge asks."""

    version = 1
    quiet = 0

    def forward(self, x: Tensor) -> Tensor:
        self.quiet += 1
        out = super().forward(x)
        if out.requires_grad:
            out.register_hook(self.heard)
        return out if self.quiet < 3 else out.roll(1, 1)

    def heard(self, grad: Tensor) -> None:
        self.quiet = 0


class Snoops(Honest):
    """Fails to be built unless it can read a file, write another, or open a socket, as ``what`` says."""

    version = 1

    def __init__(self, data: DataInfo, what: str = "", where: str = "") -> None:
        super().__init__(data)
        if what == "read":
            Path(where).read_bytes()
        elif what == "write":
            Path(where).write_text("x")
        elif what == "scratch":
            import tempfile

            with tempfile.NamedTemporaryFile("w") as file:
                file.write("x")
        elif what == "socket":
            socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        elif what == "patch":
            import bench.contracts.answers

            bench.contracts.answers.predictions = None  # type: ignore[assignment]
