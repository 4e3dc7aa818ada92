"""``bench.evaluate``: what ``bench evaluate`` does, on a model and inputs that are held in memory."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from rich.console import Console
from torch import Tensor, nn

from bench.contracts.defense import Defense, DefenseSpec, Function, as_logits, as_module, in_training_mode
from bench.contracts.errors import InputError, in_one_line
from bench.contracts.inputs import DataInfo, InputSpec, as_inputs, as_labels, check_inputs, check_labels
from bench.contracts.seeding import seeded
from bench.contracts.threat import Lp
from bench.contracts.words import as_eps
from bench.data.splits import Data, Split
from bench.engines.serial import SerialEngine
from bench.plugins.held import holding
from bench.running.cell import forget
from bench.running.evaluate import Evaluation, Request
from bench.running.progress import Display
from bench.storing.names import slug
from bench.suites.attacks import resolve_attacks
from bench.suites.config import FIELDS, Config, Suite
from bench.suites.problems import first_problem
from bench.summary.numbers import SuiteSummary
from bench.summary.report import render
from bench.summary.summarise import summarise

#: What inputs and labels may come in.
Given = Tensor | NDArray[np.generic] | Sequence[Any]


class Summary(SuiteSummary):
    """The summary of an evaluation; as text, the table that ``bench evaluate`` prints."""

    def __str__(self) -> str:
        return render(self, "table")


def evaluate(
    model: nn.Module | Callable[[Tensor], Any],
    x: Given,
    y: Given,
    *,
    norm: str = "linf",
    eps: float | str = 8 / 255,
    attacks: str | Sequence[str] | Mapping[str, Mapping[str, Any] | None] | None = None,
    batch_size: int = 512,
    device: str | torch.device | None = None,
    seed: int = 0,
    validation: tuple[Given, Given] | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Summary:
    """Attack a model on these inputs as ``bench evaluate`` does, in this process; nothing is kept on the disk.

    The model's mode, its parameters' ``requires_grad`` and its device are as before afterwards.

    Args:
        model: maps inputs in [low, high] to logits ``(N, K)``: a :class:`Defense`, a module in evaluation mode, or a
            plain function.
        x: floating-point ``(N, C, H, W)`` or ``(N, C, T)`` in [low, high]: a tensor, a NumPy array or lists; y:
            integers ``(N,)``, from 0 to K - 1.
        norm: ``linf``, ``l2``, ``l1`` or ``l0``; eps: radius in the units of x, a number or ``"8/255"``.
        attacks: names (``bench list attacks``), or by name what stands below it in ``bench.yaml``, such as
            ``{"pgd": {"steps": 50}}``. None: ``cascade``, the control ``noise``, and the sanity check ``unbounded``.
        batch_size: rows per pass; changes nothing but float noise.
        device: where it is computed; None: where the model is.
        seed: decides every random number; global random states are left as they were.
        validation: other inputs and labels of the same kind, on which the model is probed, a detector's threshold is
            set, and attacks are prepared that train something; None: it is probed on x, and the latter two are refused.
        low, high: the box of the values (default: what a :class:`Defense` says, else [0, 1]).

    Returns:
        The summary, whose only defense is the model: ``summary.defenses[0].worst_case``. An attack that failed leaves
        it incomplete, with the reason in ``summary.defenses[0].attacks``.

    Raises:
        InputError: as ``bench evaluate``, in one line: for wrong inputs, labels, radii, names or parameters, or a
            model that gives no logits, is in training mode, or raises.
    """
    module = as_module(model)
    name = _named(module)
    home = next((p.device for p in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    where = home if device is None else torch.device(device)
    with _put_back(module, home):
        module.to(where)
        data = _data(module, name, (x, y), validation, (low, high), where)
        suite = _suite(module, data, {"norm": norm, "eps": as_eps(eps)}, attacks, batch_size, seed)
        with holding(**{slug(name): module, "given.data": data}) as held, tempfile.TemporaryDirectory() as folder:
            suite = suite.model_copy(update={"data": held["given.data"]})
            _check_preparations(suite, data)
            request = Request(
                suite=suite,
                defenses=[DefenseSpec(held[slug(name)])],
                attacks=(),
                results=Path(folder),
                device=str(where),
                data_root=None,
                command="bench.evaluate",
                finish=False,
            )
            try:
                failures = Evaluation(request, SerialEngine(), Display(Console(stderr=True), quiet=True)).run()
            finally:
                forget()
            found = summarise(Path(folder), suite.name)
    if not found.defenses:
        raise InputError(failures[0])
    return Summary(**{field.name: getattr(found, field.name) for field in fields(found)})


def _named(module: nn.Module) -> str:
    name = getattr(module.function, "__name__", "") if isinstance(module, Function) else type(module).__name__
    return name.strip("<>") or type(module).__name__


@contextmanager
def _put_back(module: nn.Module, home: torch.device) -> Iterator[None]:
    """Leave a model in the mode and on the device that it has now, its parameters asking for gradients as now."""
    modes = {part: part.training for part in module.modules()}
    asking = {parameter: parameter.requires_grad for parameter in module.parameters()}
    try:
        yield
    finally:
        module.to(home)
        for part, training in modes.items():
            part.training = training
        for parameter, requires_grad in asking.items():
            parameter.requires_grad_(requires_grad)


def _data(
    module: nn.Module,
    name: str,
    given: tuple[Given, Given],
    validation: tuple[Given, Given] | None,
    box: tuple[float | None, float | None],
    device: torch.device,
) -> Data:
    """The inputs as the test split of a data set whose other splits are ``validation``, or empty."""
    x = as_inputs(given[0], torch.empty(0))
    known = module.data.input if isinstance(module, Defense) else InputSpec((1,))
    low, high = (known.low if box[0] is None else box[0]), (known.high if box[1] is None else box[1])
    spec = InputSpec(tuple(x.shape[1:]), low, high, kind="image" if x.ndim == 4 else "waveform", levels=known.levels)
    check_inputs(x, spec, "x")
    if not len(x):
        raise InputError("x: holds no inputs")
    classes = _classes(module, name, x, device)
    if isinstance(module, Defense) and (module.data.shape, module.data.num_classes) != (spec.shape, classes):
        ours = f"inputs {module.data.shape} and {module.data.num_classes} classes"
        raise InputError(f"{name}: was built for {ours}, not for {spec.shape} and {classes}")
    test = _split("x", "y", x, given[1], spec, classes)
    probed = test
    if validation is not None:
        seen = as_inputs(validation[0], torch.empty(0), "validation x")
        probed = _split("validation x", "validation y", seen, validation[1], spec, classes)
        if not len(probed):
            raise InputError("validation: holds no inputs")
    elif isinstance(module, Defense) and module.detect is not None:
        raise InputError(f"{name}: has a detector, whose threshold is set on other inputs; give validation=(x, y)")
    train = test.take(0) if validation is None else probed
    info = DataInfo(module.data.name if isinstance(module, Defense) else "given", spec, classes)
    return Data(info, [str(k) for k in range(classes)], train, probed, test)


def _split(what: str, labels: str, x: Tensor, y: Given, spec: InputSpec, classes: int) -> Split:
    check_inputs(x, spec, what)
    y = as_labels(y, torch.device("cpu"), labels)
    check_labels(y, classes, labels)
    if len(y) != len(x):
        raise InputError(f"{labels}: {len(y)} labels for {len(x)} inputs")
    x = x.detach().to("cpu", torch.float32).contiguous()
    return Split(x, y.detach().cpu().contiguous(), [f"{what.replace(' ', '/')}/{i:05d}" for i in range(len(x))])


def _classes(module: nn.Module, name: str, x: Tensor, device: torch.device) -> int:
    if not isinstance(module, Defense) and in_training_mode(module):
        raise InputError(f"model {name}: is in training mode; call .eval() first")
    if isinstance(module, Defense):
        module.eval()
    with torch.no_grad(), seeded("shape"), in_one_line(f"model {name} raised"):
        logits = as_logits(module(x[:1].detach().to(device, torch.float32).clone()))
    if logits.ndim != 2 or len(logits) != 1:
        raise InputError(f"model {name}: expected logits of shape (1, K), got {tuple(logits.shape)}")
    return logits.shape[1]


def _suite(
    module: nn.Module,
    data: Data,
    ball: dict[str, Any],
    attacks: str | Sequence[str] | Mapping[str, Mapping[str, Any] | None] | None,
    batch_size: int,
    seed: int,
) -> Suite:
    threat = Lp(ball["norm"], ball["eps"], data.info.input.low, data.info.input.high)
    if attacks is None:
        entries = _default_attacks(module, threat, data.info.input)
    elif isinstance(attacks, Mapping):
        entries = {name: None if entry is None else dict(entry) for name, entry in attacks.items()}
    else:
        entries = dict.fromkeys([attacks] if isinstance(attacks, str) else attacks)
    written = {"data": "memory", "threat_model": ball, "batch_size": batch_size, "seed": seed, "attacks": entries}
    try:
        config = Config.model_validate({"suites": {"given": written}})
    except ValidationError as error:
        raise InputError(first_problem(error, FIELDS)) from None
    return config.suite("given")


def _default_attacks(module: nn.Module, threat: Lp, spec: InputSpec) -> dict[str, Any]:
    """The strongest attack of a fixed time, through the model as it is and past a defense's transform; the controls."""
    draws = 4 if isinstance(module, Defense) and module.randomized else 1
    through: dict[str, Any] = {} if draws == 1 else {"estimator": {"eot": {"samples": draws, "of": "exact"}}}
    entries: dict[str, Any] = {"cascade": through}
    if isinstance(module, Defense) and type(module).transform is not Defense.transform:
        past = {"eot": {"samples": draws, "of": "identity"}}
        entries["cascade-bpda-i"] = {"attack": "cascade", "estimator": past}
    entries["noise"] = None
    side, values = spec.high - spec.low, math.prod(spec.shape)
    widest = {"linf": side, "l2": side * values**0.5, "l1": side * values}.get(threat.norm, 0.0)
    if widest > threat.eps:
        entries["unbounded"] = {"attack": "pgd", "eps": widest, "steps": 20}
    return entries


def _check_preparations(suite: Suite, data: Data) -> None:
    """Refuse attacks that have to be trained on data where there are none."""
    for entry in resolve_attacks(suite):
        if len(data.train):
            continue
        if entry.tier == "transfer" or (entry.spec.prepare is not None and entry.spec.prepares(**entry.params)):
            raise InputError(f"attack {entry.name}: has to be trained on other inputs; give validation=(x, y)")
