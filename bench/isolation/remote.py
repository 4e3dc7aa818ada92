"""A defense in another process, to be used like any other: what is asked of it is asked of its model server.

Gradients go through: a batch that is differentiated keeps its graph on the other side, and what comes back through the
graph here, the loss's gradient in the answer, is sent there. So nothing that knows a label leaves this process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bench.contracts.defense import Approximation, Defense, Guide
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from bench.isolation.about import About
from bench.isolation.nursery import Channel
from bench.storing.store import unpack_tensors


class Companion(Protocol):
    """Batches that are asked beside others: see :class:`bench.isolation.company.Company`."""

    def of(self, x: Tensor) -> Tensor | None: ...

    def lot(self) -> bool: ...

    def seed(self) -> int: ...


class RemoteDefense(Defense):
    """A defense that a model server holds.

    It has no parameters here: :attr:`about` has what is known of them, and :meth:`weights` fetches them.
    """

    trainable = False

    def __init__(self, data: DataInfo, channel: Channel, about: About) -> None:
        super().__init__(data)
        self.about = about
        self.randomized = about.randomized
        self.card = about.card.card()
        self.depends = tuple(about.libraries)
        self._channel = channel
        self.classifier = _Part(channel)
        self._approximations = {
            name: Approximation(_Asks(channel, "approximation", name), exact_forward=exact)
            for name, exact in about.approximations.items()
        }
        self._variants: dict[str, Callable[[Tensor], Tensor]] = {
            name: _Asks(channel, "variant", name) for name in about.variants
        }
        self._guide: Guide | None = None
        if about.guided_by is not None:
            self._guide = Guide(_Asks(channel, "guide"), about.guided_by, _Asks(channel, "forced"))
        if about.detects:
            self.detect = _Asks(channel, "detect")
        if about.shows_start:
            self.sample_start = _Asks(channel, "sample_start")
            self.transform_from = _Asks(channel, "transform_from")
        self.eval()

    @property
    def has_recipe(self) -> bool:
        return self.about.has_recipe

    def forward(self, x: Tensor) -> Tensor:
        return _ask(self._channel, "forward", x)

    def transform(self, x: Tensor) -> Tensor:
        return _ask(self._channel, "transform", x)

    def approximations(self) -> dict[str, Approximation]:
        return self._approximations

    def variants(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return self._variants

    def guide(self) -> Guide | None:
        return self._guide

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers."""
        _, packed = self._channel.ask({"state": True})
        if packed is None or packed.dtype is not torch.uint8:
            raise InputError(f"{self.about.kind}: its server sent no weights")
        return unpack_tensors(packed.numpy().tobytes())[0]

    @property
    def open(self) -> bool:
        """Whether the server is still there."""
        return self._channel.open

    def keep_company(self, company: Companion | None) -> None:
        """Have batches that ``company`` has a copy of asked together with it; None: every batch alone."""
        self._channel.company = company

    def mark(self) -> None:
        """Have parameters and buffers remembered."""
        self._channel.ask({"mark": True})

    def restore(self) -> bool:
        """Have them put back; whether they had changed."""
        said, _ = self._channel.ask({"restore": True})
        return said.get("changed") is True

    def close(self) -> None:
        """End the server."""
        self._channel.close()


class _Part(nn.Module):
    """The classifier of a remote defense."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def forward(self, z: Tensor) -> Tensor:
        return _ask(self._channel, "classifier", z)


class _Asks:
    """One question as a function of tensors."""

    def __init__(self, channel: Channel, question: str, name: str = "") -> None:
        self._channel, self._question, self._name = channel, question, name

    def __call__(self, x: Tensor, *others: Tensor) -> Tensor:
        return _ask(self._channel, self._question, x, *others, name=self._name)


def _ask(channel: Channel, question: str, x: Tensor, *others: Tensor, name: str = "") -> Tensor:
    # Of the global generator, which the harness seeds: a number that says nothing about who asks.
    seed = int(torch.randint(2**62, (), dtype=torch.int64))
    message = {"call": question, "seed": seed, "name": name}
    answer: Tensor = _Question.apply(x, channel, message, others)
    return answer


class _Answer:
    """An answer that can be differentiated; when nobody holds it any more, its graph may go."""

    def __init__(self, channel: Channel, number: int) -> None:
        self.channel, self.number = channel, number

    def __del__(self) -> None:
        self.channel.dropped.append(self.number)


class _Question(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, channel: Channel, message: dict[str, Any], others: tuple[Tensor, ...]) -> Tensor:
        copy = channel.company.of(x) if channel.company is not None and not others else None
        batches = [(message, x)]
        ctx.asked = 0  # which of the batches is the one that was asked about
        if channel.company is not None and copy is not None:
            ctx.asked = int(channel.company.lot())
            batches.insert(1 - ctx.asked, ({**message, "seed": channel.company.seed()}, copy))
        answers = [channel.ask(question, batch, *others) for question, batch in batches]
        if any(type(said.get("number")) is not int for said, _ in answers) or answers[ctx.asked][1] is None:
            raise InputError(f"{message['call']}: its server sent no tensor")
        ctx.answers = [_Answer(channel, said["number"]) for said, _ in answers]
        said, found = answers[ctx.asked]
        assert found is not None
        out: Tensor = found.to(x.device)
        if said.get("differentiable") is not True or not out.is_floating_point():
            ctx.mark_non_differentiable(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        found = [answer.channel.ask({"back": answer.number}, grad)[1] for answer in ctx.answers][ctx.asked]
        if found is None:
            return None, None, None, None
        return found.to(grad.device), None, None, None
