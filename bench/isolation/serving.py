"""A model server: holds one defense, and answers what its judge asks over a socket.

It is always asked in the same way, whoever asks: one batch, one seed without a name, gradients recorded. Whether a
gradient is then asked for shows only afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import pickle
import random
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.contracts.defense import Defense, DefenseSpec, as_logits, freeze, ready
from bench.contracts.errors import ADVICE, InputError, NotApplicable, raised
from bench.contracts.inputs import DataInfo
from bench.isolation import wire
from bench.isolation.about import describe
from bench.plugins.resolve import LoadedDefense, build_defense, load_defense
from bench.storing.checkpoints import TrainingSettings
from bench.storing.store import pack_tensors, unpack_tensors

#: What is said of a plugin that could not be built because a file or the network is kept from it.
KEPT_FROM_IT = (
    "isolated, it may read its own folder and its weights, and no data set or network: what it needs goes into a file "
    "beside its code (bench submit --with FILE) or into what its fit learns; --isolation none trusts it"
)


def serve(channel: socket.socket, *, sandboxed: bool) -> None:
    """Answer until the judge hangs up.

    Args:
        sandboxed: whether files and the network are kept from the defense.
    """
    server = _Server(sandboxed)
    while True:
        message, files = wire.receive_with_files(channel)
        for name, file in zip(message.get("memory", ()), files, strict=True):
            server.hold(name, wire.Memory(file))
        wire.send(channel, server.answer(message))


class _Server:
    def __init__(self, sandboxed: bool) -> None:
        self.sandboxed = sandboxed
        self.memory: dict[str, wire.Memory] = {}
        self.defense: Defense | None = None
        self.device = torch.device("cpu")
        #: By number: an answer, and the inputs that it can be differentiated in.
        self._graphs: dict[int, tuple[Tensor, Tensor]] = {}
        self._state: dict[str, Tensor] = {}
        self._answers = 0
        self._unsent: tuple[dict[str, Any], Tensor] | None = None
        self._verbs: dict[str, Callable[[dict[str, Any]], tuple[dict[str, Any], Tensor | None]]] = {
            "open": self._open, "call": self._call, "back": self._back, "again": self._again, "state": self._packed,
            "mark": self._mark, "restore": self._restore, "run": self._run,
        }  # fmt: skip

    def hold(self, name: str, memory: wire.Memory) -> None:
        if name in self.memory:
            self.memory[name].close()
        self.memory[name] = memory

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        for number in message.get("drop", ()):
            self._graphs.pop(number, None)
        try:
            said, tensor = next(verb for name, verb in self._verbs.items() if name in message)(message)
            return said if tensor is None else self._sent(said, tensor)
        except (torch.OutOfMemoryError, MemoryError) as error:
            return _error("memory", error)
        except NotApplicable as error:
            return _error("not-applicable", error)
        except InputError as error:
            return _error("input", error)
        except Exception as error:  # whatever a plugin raises
            if "allocate memory" in str(error):  # what PyTorch says of main memory
                return _error("memory", error)
            return _error("raised", error)

    def _sent(self, said: dict[str, Any], tensor: Tensor) -> dict[str, Any]:
        try:
            return {**said, "y": self.memory["out"].write({"y": tensor})["y"]}
        except wire.TooLarge as error:
            self._unsent = said, tensor
            return {"needed": error.needed}

    def _again(self, message: dict[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
        """Send what did not fit, now that there is more memory."""
        assert self._unsent is not None
        (said, tensor), self._unsent = self._unsent, None
        return said, tensor

    # -- the defense ----------------------------------------------------------------------------------------

    def _open(self, message: dict[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
        spec, info, device, training, weights, built = pickle.loads(self._read(message["x"][0]).numpy().tobytes())
        self.device = torch.device(device)
        try:
            loaded = self._loaded(spec, info, training, weights, built)
        except InputError as error:
            if self.sandboxed and _is_about_files(error):
                raise InputError(f"{str(error).removesuffix(ADVICE)}; {KEPT_FROM_IT}") from error
            raise
        self.defense = ready(loaded.defense)
        about = describe(loaded)
        return {"about": about.model_dump(mode="json")}, None

    def _loaded(
        self, spec: DefenseSpec, info: DataInfo, training: TrainingSettings | None, weights: bytes | None, built: bool
    ) -> LoadedDefense:
        given = None if weights is None else unpack_tensors(weights)[0]
        if built:
            defense = build_defense(spec, info).to(self.device)
            if given is not None:
                defense.load_state_dict(given)
            return LoadedDefense(defense, None, None, {}, 0, {})
        return load_defense(spec, info, self.device, training, given)

    def _packed(self, message: dict[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
        assert self.defense is not None
        return {}, torch.frombuffer(bytearray(pack_tensors(self.defense.state_dict())), dtype=torch.uint8)

    def _mark(self, message: dict[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
        """Remember parameters and buffers."""
        assert self.defense is not None
        self._state = {name: value.clone() for name, value in self.defense.state_dict().items()}
        return {}, None

    def _restore(self, message: dict[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
        """Put parameters and buffers back; says whether they had changed."""
        assert self.defense is not None
        freeze(self.defense)
        now, before = self.defense.state_dict(), self._state
        changed = now.keys() != before.keys() or any(not torch.equal(now[name], before[name]) for name in before)
        if changed:
            self.defense.load_state_dict(before)
        self._state = {}
        return {"changed": changed}, None

    def _run(self, message: dict[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
        """A function of this project which runs an author's code for long, such as the training of a copy."""
        function, args = pickle.loads(self._read(message["x"][0]).numpy().tobytes())
        return {}, torch.frombuffer(bytearray(function(*args)), dtype=torch.uint8)

    # -- questions ------------------------------------------------------------------------------------------

    def _call(self, message: dict[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
        method = self._method(message["call"], message.get("name", ""))
        given = [self._read(place).to(self.device, copy=True) for place in message["x"]]
        x = given[0].requires_grad_()
        seed = int(message["seed"])
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():  # torch.manual_seed would take milliseconds where it is not
            torch.cuda.manual_seed_all(seed)
        with torch.enable_grad():
            inside = x.clone()  # it may be written into, which is then said
            version = inside._version
            out = method(inside, *given[1:])
        if inside._version != version:
            raise InputError(f"{message['call']}: writes into its input; work on a copy")
        if not isinstance(out, Tensor):
            raise InputError(f"{message['call']}: expected a tensor, got {type(out).__name__}")
        self._answers += 1
        if out.requires_grad:
            self._graphs[self._answers] = out, x
        return {"number": self._answers, "differentiable": out.requires_grad}, out.detach()

    def _method(self, name: str, of: str) -> Callable[..., object]:
        defense = self.defense
        assert defense is not None
        if name == "classifier":
            return lambda z: as_logits(defense.classifier(z))
        if name == "approximation":
            return defense.approximations()[of].through
        if name == "variant":
            return defense.variants()[of]
        if name in ("guide", "forced"):
            guide = defense.guide()
            assert guide is not None, "asked only where there is one"
            return guide.forced if name == "forced" else lambda x: as_logits(guide.logits(x))
        if name == "forward":
            return defense
        if name not in ("transform", "detect", "sample_start", "transform_from"):
            raise InputError(f"no question {name!r}")
        method: Callable[..., object] = getattr(defense, name)
        return method

    def _back(self, message: dict[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
        out, x = self._graphs[message["back"]]
        grad = self._read(message["x"][0]).to(out)
        (found,) = torch.autograd.grad(out, x, grad, allow_unused=True, retain_graph=True)
        return {"none": found is None}, found

    def _read(self, place: object) -> Tensor:
        return self.memory["in"].read(place)


def _is_about_files(error: BaseException) -> bool:
    """Whether what was raised goes back to a file that is not there for this process, or a socket that is denied."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.EACCES, errno.EPERM, errno.ENOENT):
            return True
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return False


def _error(kind: str, error: BaseException) -> dict[str, Any]:
    """What is said of an error: for an author's own one its type and place as well."""
    text = " ".join(str(error).split())
    if kind == "raised":
        text = str(raised("", error)).strip().removeprefix(type(error).__name__).removeprefix(": ")
        text = text.removesuffix(ADVICE)  # it is the judge's to give
    with contextlib.suppress(Exception):
        return {"error": kind, "type": type(error).__name__, "text": text[:2000]}
    return {"error": kind, "type": "Exception", "text": ""}
