"""The reference of all defenses, written from the code: ``python -m bench.reference.defenses > docs/defenses.md``."""

from __future__ import annotations

import inspect
import re
import sys

from bench.contracts.defense import Card, Defense, DefenseSpec
from bench.contracts.detector import Detector
from bench.contracts.inputs import DataInfo, InputSpec
from bench.plugins.references import resolve
from bench.plugins.registry import DEFENSES
from bench.plugins.resolve import build_defense
from bench.reference.markdown import first_paragraph, inline, meaning, page, split_docstring, table

#: The data of the shipped checkpoints: it decides the defaults that are built below.
_DIGITS = DataInfo("digits", InputSpec((1, 8, 8), levels=17), 10)
#: Of a size at which a layer may stand before weights that exist already.
_CIFAR = DataInfo("cifar10", InputSpec((3, 32, 32), levels=256), 10)

_INTRODUCTION = """\
# Defenses

<!-- Written by `make docs` from the code; edits here are lost. -->

Every defense that is shipped: what it does, why it was thought to work, what breaks it, how it is trained, and its
parameters as they are given to `--set`:

```sh
bench train --defense ours --set radius=0.3 --suite digits
bench evaluate --defense ours --set radius=0.3 --suite digits
```

What is left of each under attack is on the site that `make leaderboard` builds. *Stand-ins* are the differentiable
approximations of the transform that a defense declares for BPDA; an attack that asks for none of them takes the first.
The identity needs no declaration and is always tried (BPDA-I). The numbers of papers are accuracies in per cent; a
clean one that is missing was not at hand. A detector stands in front of any classifier (`--set classifier=madry`), and
is trained after it; from 32 pixels on, to the weights that this has already. *From 16 pixels on* is about the shorter
side of an image: below it are the digits of 8×8. A default `null` is chosen by the data or the network.
"""


def reference() -> str:
    """The whole page, Markdown: every shipped defense by family.

    Raises:
        PluginError: for a defense that cannot be imported.
        ValueError: for a parameter that its docstring does not explain.
    """
    defenses = {name: resolve(name) for name in DEFENSES.built_in()}
    shipped = {
        name: cls for name, cls in defenses.items() if isinstance(cls, type) and issubclass(cls, (Defense, Detector))
    }
    order = sorted(shipped, key=lambda name: (shipped[name].card.family, name))
    overview = [
        [f"[{name}](#{name})", inline(card.title), inline(card.family), inline(", ".join(card.tags))]
        for name in order
        for card in [shipped[name].card]
    ]
    parts = [
        _INTRODUCTION,
        table(["Defense", "What it is", "Family", "Tags"], overview),
        *(_section(name, shipped[name]) for name in order),
    ]
    return page(parts)


def _section(name: str, cls: type[Defense] | type[Detector]) -> str:
    card = cls.card
    text, arguments = split_docstring(cls)
    rows = []
    for parameter in list(inspect.signature(cls).parameters.values())[1:]:
        default = "null" if parameter.default is None else str(parameter.default)
        explained = _with_values(cls, meaning(name, parameter.name, arguments))
        rows.append([f"`{parameter.name}`", f"`{default}`", explained])
    if issubclass(cls, Detector):
        rows.append(["`classifier`", "`none`", "the defense that it stands in front of."])
    defense = build_defense(DefenseSpec(name), _DIGITS)
    borrowed = None if issubclass(cls, Detector) else build_defense(DefenseSpec(name), _CIFAR).weights_of
    stand_ins = ", ".join(f"`{each}`" for each in defense.approximations())
    facts = [
        f"**Randomised**: {'yes' if defense.randomized else 'no'}.",
        f"**Stand-ins**: {stand_ins}." if stand_ins else "",
        f"**Training**: {inline(first_paragraph(cls.fit) if cls.fit is not Detector.fit else 'none.')}",
        f"From 32 pixels on it has the weights of `{borrowed}`, and is not trained itself." if borrowed else "",
    ]
    parts = [
        f"## {name}",
        f"**{inline(card.title)}**, [{inline(card.paper)}]({card.url})." if card.url else f"**{inline(card.title)}**.",
        inline(card.summary),
        " ".join(filter(None, facts)),
        *(_with_values(cls, inline(paragraph)) for paragraph in text),
        table(["Parameter", "Default", "Meaning"], rows) if rows else "No parameters.",
        _claims(card),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts if part)


def _with_values(cls: type, text: str) -> str:
    """The text with the constants of the defense's module, such as ``SMALL_RADIUS``, as the numbers that they are."""
    constants = vars(sys.modules[cls.__module__])
    return re.sub(r"\b[A-Z]+(?:_[A-Z]+)+\b", lambda name: str(constants.get(name[0], name[0])), text)


def _claims(card: Card) -> str:
    rows = [
        [kind, *map(inline, (c.data, c.threat, _percent(c.standard), _percent(c.robust), c.attack, c.source))]
        for kind, claims in (("claimed", card.claims), ("broken", card.breaks))
        for c in claims
    ]
    return table(["", "Data", "Threat", "Clean", "Robust", "Attack", "Source"], rows) if rows else ""


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


if __name__ == "__main__":
    sys.stdout.write(reference())
