"""The reference of all attacks, written from the code: ``python -m bench.reference.attacks > docs/attacks.md``."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types

from attacks.toolkit.estimators import ESTIMATORS, EstimatorLike
from attacks.toolkit.losses import LOSSES, LossLike
from attacks.toolkit.masks import MaskLike
from bench.contracts.attack import AttackSpec
from bench.contracts.words import KNOWLEDGE
from bench.plugins.registry import ATTACKS
from bench.plugins.resolve import get_attack
from bench.reference.markdown import first_paragraph, inline, meaning, page, split_docstring, table

#: What is written for the parameters whose type is no plain Python type.
_NAMED: list[tuple[Any, str]] = [
    (EstimatorLike, "[estimator](#gradient-estimators)"),
    (LossLike, "[loss](#losses)"),
    (MaskLike, "mask"),
]
_BOUNDS: dict[type, tuple[str, str]] = {
    annotated_types.Ge: ("ge", "≥"),
    annotated_types.Gt: ("gt", ">"),
    annotated_types.Le: ("le", "≤"),
    annotated_types.Lt: ("lt", "<"),
}

_INTRODUCTION = """\
# Attacks

<!-- Written by `make docs` from the code; edits here are lost. -->

Every attack that is shipped, with its parameters as they are written in `bench.yaml` or given to `attacks.run`:

```python
import attacks

result = attacks.run("pgd", model, x, y, norm="linf", eps=8 / 255, steps=100, seed=0)
result.x_adv, result.success, result.forward, result.backward
```

*Knowledge* is what [the target shows](submit-an-attack.md#knowledge-and-what-the-target-shows). *Targeted*: takes
`towards=`, a class to reach per image. *Minimum norm*: shortens the perturbation; `eps` may be left out of
`attacks.run`, and the distance reached is then the result. Distances and steps are on the [0, 1] pixel scale.
"""


def reference() -> str:
    """The whole page, Markdown: every shipped attack, the losses and the gradient estimators.

    Raises:
        PluginError: for an attack that cannot be imported.
        ValueError: for a parameter that its docstring does not explain.
    """
    specs = [get_attack(name) for name in ATTACKS.built_in()]
    specs.sort(key=lambda spec: (-KNOWLEDGE.index(spec.knowledge), spec.name))
    overview = [
        [f"[{spec.name}](#{spec.name})", inline(spec.summary), spec.knowledge, ", ".join(spec.norms),
         _tick(spec.targeted), _tick(spec.minimum_norm)]
        for spec in specs
    ]  # fmt: skip
    parts = [
        _INTRODUCTION,
        table(["Attack", "What it is", "Knowledge", "Norms", "Targeted", "Minimum norm"], overview),
        *map(_section, specs),
        _losses(),
        _estimators(),
    ]
    return page(parts)


def _section(spec: AttackSpec) -> str:
    text, arguments = split_docstring(spec.function)
    facts = [f"knowledge `{spec.knowledge}`", f"norms {', '.join(f'`{norm}`' for norm in spec.norms)}"]
    facts += ["targeted"] * spec.targeted + ["minimum norm"] * spec.minimum_norm
    source = f"[{spec.paper}]({spec.url})." if spec.url else f"{spec.paper}." if spec.paper else ""
    rows = []
    for name, parameter in spec.parameters().items():
        kind = _kind(parameter.annotation)
        rows.append([f"`{name}`", kind, f"`{_written(parameter.default)}`", meaning(spec.name, name, arguments)])
    parts = [f"## {spec.name}", source, f"{', '.join(facts).capitalize()}.", *map(inline, text)]
    parts.append(table(["Parameter", "Type", "Default", "Meaning"], rows) if rows else "No parameters.")
    return "\n\n".join(part for part in parts if part)


def _losses() -> str:
    rows = [[f"`{name}`", inline(first_paragraph(loss))] for name, loss in LOSSES.items()]
    return f"""\
## Losses

Each is maximised, one value per image; z are the logits, p the probabilities, y the label. A multi-targeted run goes
towards a class t. A targeted attack maximises the negative of the untargeted loss of the class it has to reach.

{table(["Loss", "Value"], rows)}
Written with a setting: `{{m_logit: {{kappa: 5}}}}`. CE-sign (Ozbulak et al. 2020) is `loss: ce` with `direction: sign`
of `pgd`. The cross-entropy of the averaged logits of a randomised defense is `loss: ce` with
`estimator: {{eot: {{of: exact, samples: 16, average: logits}}}}`.
"""


def _estimators() -> str:
    rows = []
    for name, maker in ESTIMATORS.items():
        settings = [
            f"{p.name}" if p.default is p.empty else f"{p.name}: {_written(p.default)}"
            for p in inspect.signature(maker).parameters.values()
        ]
        rows.append([f"`{name}`", f"`{', '.join(settings)}`" if settings else "", inline(first_paragraph(maker))])
    return f"""\
## Gradient estimators

How an attack gets a gradient; any parameter of type estimator takes any of them, by name (`identity`) or with settings
(`{{finite_difference: {{samples: 64}}}}`, `{{eot: {{samples: 16, of: {{bpda: tanh}}}}}}`).

{table(["Estimator", "Settings", "Gradient"], rows)}"""


def _kind(annotation: Any) -> str:
    """A type and its bounds, as a reader of the page needs them."""
    for known, name in _NAMED:
        if annotation == known:
            return name
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return inline(" ".join([_kind(members[0]), *_bounds(members[1:])]))
    if origin is Literal:
        return ", ".join(f"`{member}`" for member in members)
    if origin in (Union, UnionType):
        return " or ".join("`null`" if member is NoneType else _kind(member) for member in members)
    return getattr(annotation, "__name__", str(annotation))


def _bounds(metadata: Iterable[Any]) -> list[str]:
    found = [(mark, getattr(rule, field)) for rule in metadata for kind, (field, mark) in _BOUNDS.items()
             if isinstance(rule, kind)]  # fmt: skip
    return [", ".join(f"{mark} {bound:g}" for mark, bound in found)] if found else []


def _written(value: object) -> str:
    """A default as it is written in ``bench.yaml``."""
    return value if isinstance(value, str) else json.dumps(value)


def _tick(value: bool) -> str:
    return "yes" if value else ""


if __name__ == "__main__":
    sys.stdout.write(reference())
