"""Adversarial inputs as a file: steps of grey levels where they can be, float32 where they cannot.

A point that lies on the grey levels of the data's files differs from its clean image by whole levels. These small
integers take a quarter of the room and, compressed, a tenth. Points are stored so only where they come back bit for
bit; the others stay as they are. The file says in its header what a level is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.contracts.errors import InputError
from bench.contracts.inputs import InputSpec
from bench.contracts.levels import level_of, value_at

#: Names of the tensors in the file: the inputs as they are, ``(m, …)``; steps of whole levels from the clean input,
#: ``(k, …)``; and bool ``(m + k,)``, which of the inputs have the latter form.
WHOLE, STEPS, ON_LEVELS = "x_adv", "steps", "on_levels"


@dataclass(frozen=True)
class Images:
    """Adversarial inputs as they are stored.

    Attributes:
        tensors: under the names above; only the first of them where no input lies on grey levels.
        header: words beside them: the box and the number of its levels; empty without steps.
    """

    tensors: dict[str, Tensor]
    header: dict[str, str] = field(default_factory=dict)


def encode(x_adv: Tensor, x: Tensor, spec: InputSpec) -> Images:
    """What is to be stored of ``x_adv (N, …)``, the adversarial inputs of the clean ``x (N, …)``."""
    x_adv = x_adv.detach().float().cpu()
    if spec.levels is None or x_adv.shape != x.shape:
        return Images({WHOLE: x_adv})
    x = x.float().cpu()
    away = (level_of(x_adv, spec) - level_of(x, spec)).round()
    kind = torch.int8 if away.abs().max() <= 127 else torch.int32  # in most balls the smaller one will do
    steps = away.nan_to_num(0.0, 0.0, 0.0).to(kind)
    exact = (_moved(x, steps, spec) == x_adv).flatten(1).all(1)
    if not exact.any():
        return Images({WHOLE: x_adv})
    header = {"box": f"{spec.low!r} {spec.high!r} {spec.levels}"}  # one entry: the order of more is left to chance
    return Images({WHOLE: x_adv[~exact], STEPS: steps[exact], ON_LEVELS: exact}, header)


def decode(images: Images, x: Tensor | None) -> Tensor:
    """The adversarial inputs again, float32 ``(N, …)``, from the clean ones, which may be None where none has steps.

    Raises:
        InputError: where tensors and header do not fit each other or the clean inputs.
    """
    stored = images.tensors
    if STEPS not in stored:
        return stored[WHOLE]
    if x is None:
        raise InputError("the adversarial inputs are stored as steps from the clean ones, which are not given")
    on = stored[ON_LEVELS]
    whole, steps = stored[WHOLE], stored[STEPS]
    fits = on.dtype == torch.bool and on.shape == (len(x),) and int(on.sum()) == len(steps) == len(x) - len(whole)
    if not fits or not whole.shape[1:] == steps.shape[1:] == x.shape[1:]:
        raise InputError("the steps do not fit the clean inputs")
    try:
        low, high, levels = images.header["box"].split()
        spec = InputSpec(tuple(x.shape[1:]), float(low), float(high), levels=int(levels))
    except (KeyError, ValueError):
        raise InputError("the file does not say what a step is") from None
    x = x.float().cpu()
    x_adv = torch.empty_like(x)
    x_adv[~on] = whole
    x_adv[on] = _moved(x[on], steps, spec)
    return x_adv


def pick(images: Images, rows: Sequence[int]) -> Images:
    """What is to be stored of some of the inputs, by their positions in ascending order."""
    stored = images.tensors
    if STEPS not in stored:
        return Images({WHOLE: stored[WHOLE][list(rows)]})
    on = stored[ON_LEVELS]
    place = torch.where(on, on.cumsum(0), (~on).cumsum(0)) - 1  # of each input among those of its form
    chosen = torch.tensor(list(rows), dtype=torch.int64)
    apart = {form: place[chosen[on[chosen] == (form == STEPS)]] for form in (WHOLE, STEPS)}
    if not len(apart[STEPS]):
        return Images({WHOLE: stored[WHOLE][apart[WHOLE]]})
    return Images({**{form: stored[form][at] for form, at in apart.items()}, ON_LEVELS: on[chosen]}, images.header)


def _moved(x: Tensor, steps: Tensor, spec: InputSpec) -> Tensor:
    return value_at(level_of(x, spec).round() + steps, spec)
