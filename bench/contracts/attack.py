"""The attack contract: a plain function ``(target, x, y, *, parameters) -> x_adv`` registered with its knowledge.

An attack never decides success, never clips for the judge and never prints. It draws all its randomness from
``target.generator`` and sees of the defense only what its knowledge allows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pydantic
from torch import Tensor

from bench.contracts.errors import InputError, did_you_mean
from bench.contracts.words import KNOWLEDGE, Knowledge, Seeks

if TYPE_CHECKING:
    import torch

    from bench.contracts.defense import Defense
    from bench.contracts.inputs import DataInfo
    from bench.contracts.threat import Lp
    from bench.data.splits import Split


@dataclass(frozen=True)
class PrepareContext:
    """What an attack may use to prepare itself once, before it meets the examples of any shard.

    ``defense`` is None for an attack whose preparation depends on the data alone; ``train`` is the training
    split; ``validation`` are held-out examples to try things on (None: the data have none); ``device`` is where to
    work. Global randomness is already seeded. Long work says how far it is with
    :func:`bench.contracts.reporting.report`.
    """

    defense: Defense | None
    info: DataInfo
    threat: Lp
    train: Split
    device: torch.device
    validation: Split | None = None


@dataclass(frozen=True)
class AttackSpec:
    """A registered attack.

    Attributes:
        name: as in ``bench.yaml`` and on the leaderboard.
        function: ``(target, x, y, **parameters) -> x_adv``.
        knowledge: what the target shows it: ``transfer``, ``decision``, ``score`` or ``gradient``.
        norms: the norms it can be bounded by.
        paper: authors, year, title; url: where to read it.
        prepare: ``(PrepareContext, **parameters) -> dict of tensors``, computed once per cell (or once per data
            set when ``prepare_scope`` is ``"data"``), stored, and given to the function as ``target.prepared``.
        prepares: ``(**parameters) -> bool``: whether these parameters need the preparation at all.
        targeted: whether it can be asked for a class to reach (``target.towards``).
        minimum_norm: whether it shortens the perturbation instead of filling the ball; such an attack has a
            parameter ``stop_inside`` that ends it for an example once its point is inside the ball.
        seeks: ``error``, an input that is wrong and accepted; ``rejection``, one near to x that a detector rejects. The
            latter is run against detectors alone, and counts in the stratified robust accuracy.
        adapts: whether it looks for other gradients than those of plain automatic differentiation by itself, without a
            parameter ``estimator`` that says so.
        version: raised, from 1 on, whenever a change of code changes what the attack returns or what it costs.
            Stored results of another version are stale. None, for a plugin without a version of its own: it is
            told apart by a hash over its own files.
        randomised_version: likewise, where only what it does to randomised defenses has changed; None: it never has.
    """

    name: str
    function: Callable[..., Tensor]
    knowledge: Knowledge
    norms: tuple[str, ...]
    paper: str
    url: str
    prepare: Callable[..., dict[str, Tensor]] | None = None
    prepare_scope: Literal["data", "defense"] = "defense"
    prepares: Callable[..., bool] = lambda **_: True
    targeted: bool = False
    minimum_norm: bool = False
    seeks: Seeks = "error"
    adapts: bool = False
    version: int | None = None
    randomised_version: int | None = None

    @property
    def summary(self) -> str:
        """The first line of the attack's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def parameters(self) -> dict[str, inspect.Parameter]:
        """The keyword-only parameters of the function."""
        signature = inspect.signature(self.function, eval_str=True)
        return {n: p for n, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}

    def check(self, params: dict[str, Any], where: str) -> dict[str, Any]:
        """Validate ``params`` by the function's annotations and return them with every default filled in.

        Raises:
            InputError: naming ``where.parameter``, the value and the rule.
        """
        known = self.parameters()
        for name in params:
            if name not in known:
                raise InputError(f"{where}.{name}: {self.name} has no such parameter{did_you_mean(name, known)}")
        fields: dict[str, Any] = {
            n: (Any if p.annotation is p.empty else p.annotation, p.default) for n, p in known.items()
        }
        config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())
        model = pydantic.create_model("Parameters", __config__=config, **fields)
        try:
            values = model(**params)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            path = ".".join([where, *map(str, first["loc"])])
            raise InputError(f"{path}: {first['msg']}, got {first['input']!r}") from None
        plain = (bool, int, float, str)
        checked = {n: getattr(values, n) for n in known}
        # Written forms (an estimator's nested mapping) stay as written, so that they can be stored and hashed.
        return {n: v if isinstance(v, plain) else params.get(n, known[n].default) for n, v in checked.items()}


def attack(
    name: str,
    *,
    knowledge: Knowledge,
    norms: tuple[str, ...],
    paper: str = "",
    url: str = "",
    prepare: Callable[..., dict[str, Tensor]] | None = None,
    prepare_scope: Literal["data", "defense"] = "defense",
    prepares: Callable[..., bool] = lambda **_: True,
    targeted: bool = False,
    minimum_norm: bool = False,
    seeks: Seeks = "error",
    adapts: bool = False,
    version: int | None = None,
    randomised_version: int | None = None,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Decorate a plain function as an attack; the registration is attached as ``function.attack``."""
    if knowledge not in KNOWLEDGE:
        raise InputError(f"attack {name}: knowledge {knowledge!r} is not one of {', '.join(KNOWLEDGE)}")
    for kind, number in {"version": version, "randomised_version": randomised_version}.items():
        if number is not None and (type(number) is not int or number < 1):
            raise InputError(f"attack {name}: {kind} {number!r} must be an integer of at least 1, or None")

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        spec = AttackSpec(
            name=name,
            function=function,
            knowledge=knowledge,
            norms=norms,
            paper=paper,
            url=url,
            prepare=prepare,
            prepare_scope=prepare_scope,
            prepares=prepares,
            targeted=targeted,
            minimum_norm=minimum_norm,
            seeks=seeks,
            adapts=adapts,
            version=version,
            randomised_version=randomised_version,
        )
        function.attack = spec  # type: ignore[attr-defined]
        return function

    return register
