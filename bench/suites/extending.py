"""``extends`` in a suite: it is the suite of that name but for what it says itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.contracts.errors import InputError, did_you_mean
from bench.contracts.words import parse_eps

#: Fields that are taken over field by field; of the others, the whole value.
_NESTED = ("threat_model", "draws", "examples_of")

Raw = dict[str, Any]


def extended(suites: Mapping[str, Any], shipped: Mapping[str, Any]) -> Raw:
    """The suites of a file as they would have been written without ``extends`` and ``without``.

    A parent is looked for in the file, then among the shipped suites; a suite may extend the shipped one whose name it
    has. What is no mapping is left to the validation.

    Args:
        suites: as read from the file, by name.
        shipped: those shipped, already extended.

    Raises:
        InputError: for an unknown parent, parents in a circle, or a change to an attack that the parent lacks.
    """
    done: Raw = {}

    def make(name: str, children: tuple[str, ...]) -> Any:
        if name in done:
            return done[name]
        own = suites[name]
        if not isinstance(own, dict) or not ("extends" in own or "without" in own):
            return done.setdefault(name, own)
        parent, where = own.get("extends"), f"suites.{name}"
        if not isinstance(parent, str):
            rule = "needs `extends`" if parent is None else f"{parent!r} must be the name of a suite"
            raise InputError(f"{where}.{'without' if parent is None else 'extends'}: {rule}")
        path = (*children, name)
        if parent in suites and (parent != name or parent not in shipped):
            if parent in path:
                raise InputError(f"suites.{path[0]}.extends: {' → '.join((*path, parent))} is a circle")
            base = make(parent, path)
        elif parent in shipped:
            base = shipped[parent]
        else:
            raise InputError(
                f"{where}.extends: suite {parent!r} does not exist{did_you_mean(parent, [*suites, *shipped])}"
            )
        return done.setdefault(name, _merged(base, own, parent, where) if isinstance(base, dict) else base)

    suites = dict(suites)
    return {name: make(name, ()) for name in suites}


def _merged(base: Raw, own: Raw, parent: str, where: str) -> Raw:
    change = {key: value for key, value in own.items() if key not in ("extends", "without", "attacks")}
    for key in _NESTED:
        if isinstance(change.get(key), dict) and isinstance(base.get(key), dict):
            change[key] = {**base[key], **change[key]}
    named = ", ".join(key for key in own if key not in ("extends", "description"))
    merged = {**base, "description": f"{parent}, but for its {named}." if named else f"{parent}.", **change}
    merged["attacks"] = _attacks(base.get("attacks"), own, parent, where)
    if "threat_model" in own:
        _another_ball(merged, base, own)
    most = merged.get("examples")
    for name, entry in merged["attacks"].items() if isinstance(merged["attacks"], dict) else ():
        inherited = not isinstance(own.get("attacks"), dict) or name not in own["attacks"]
        if inherited and isinstance(entry, dict) and isinstance(most, int) and (entry.get("examples") or 0) > most:
            merged["attacks"][name] = {key: value for key, value in entry.items() if key != "examples"}
    if isinstance(merged.get("examples_of"), dict) and isinstance(most, int):
        said = own.get("examples_of") or {}
        merged["examples_of"] = {name: n for name, n in merged["examples_of"].items() if name in said or _fits(n, most)}
    study = merged.get("study")
    if isinstance(study, dict) and isinstance(study.get("variants"), list) and "study" not in own:
        merged["study"] = {**study, "variants": [_known(variant, merged["attacks"]) for variant in study["variants"]]}
    return merged


def _attacks(base: Any, own: Raw, parent: str, where: str) -> Any:
    """The parent's attacks without those named in ``without``, with those of the suite changed or added."""
    attacks = dict(base) if isinstance(base, dict) else {}
    without = own.get("without") or []
    if not isinstance(without, list):
        raise InputError(f"{where}.without: {without!r} must be a list of attacks of {parent}")
    for name in without:
        if name not in attacks:
            raise InputError(f"{where}.without: {parent} has no attack {name!r}{did_you_mean(str(name), attacks)}")
        del attacks[name]
    change = own.get("attacks")
    if change is None:
        return attacks
    if not isinstance(change, dict):
        return change
    for name, entry in change.items():
        before = attacks.get(name)
        if name in without:
            raise InputError(f"{where}.attacks.{name}: stands in `without` as well")
        if entry is None and name in attacks:
            rule = f"is empty; leave it out to keep that of {parent}, or name it in `without` to drop it"
            raise InputError(f"{where}.attacks.{name}: {rule}")
        if isinstance(before, dict) and isinstance(entry, dict) and _behind(name, entry, before):
            entry = {**before, **entry}
        attacks[name] = entry
    return attacks


def _behind(name: str, entry: Raw, before: Raw) -> bool:
    """Whether it is the same attack, so that its other parameters still mean something."""
    return bool(entry.get("attack", before.get("attack", name)) == before.get("attack", name))


def _another_ball(merged: Raw, base: Raw, own: Raw) -> None:
    """In another ball the weights stay those of the parent, and what means nothing there is left out.

    As with ``--norm`` and ``--eps``: in another norm entries with an ``eps`` of their own, and the ``radii``; in a
    smaller ball the radii beyond it.
    """
    before, now = base.get("threat_model"), merged["threat_model"]
    if not isinstance(before, dict) or not isinstance(now, dict) or not isinstance(own["threat_model"], dict):
        return
    other_norm = before.get("norm") != now.get("norm")
    if other_norm and "eps" not in own["threat_model"]:
        del now["eps"]  # which the validation then asks for
    if "radii" not in own["threat_model"] and "radii" in now:
        kept = [radius for radius in now["radii"] if not other_norm and _at_most(radius, now.get("eps"))]
        now["radii"] = kept
    if other_norm and isinstance(merged["attacks"], dict):
        changed = own.get("attacks") or {}
        merged["attacks"] = {
            name: entry
            for name, entry in merged["attacks"].items()
            if name in changed or not (isinstance(entry, dict) and entry.get("eps") is not None)
        }
    balls = [(ball.get("norm"), parse_eps(ball.get("eps"))) for ball in (before, now)]
    if "trained_for" not in own and base.get("data") == merged.get("data") and balls[0] != balls[1]:
        weights = base.get("trained_for") or {key: before[key] for key in ("norm", "eps") if key in before}
        merged["trained_for"] = weights


def _fits(number: Any, most: int) -> bool:
    """Whether an inherited number of examples still says something; what is no number is left to the validation."""
    return not isinstance(number, int) or number <= most


def _at_most(radius: Any, eps: Any) -> bool:
    try:
        return float(parse_eps(radius)) <= float(parse_eps(eps))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False  # which the validation says something about


def _known(variant: Any, attacks: Any) -> Any:
    """A study's variant without published numbers of attacks that are gone."""
    if not isinstance(variant, dict) or not isinstance(variant.get("published"), dict):
        return variant
    kept = {name: value for name, value in variant["published"].items() if name == "clean" or name in attacks}
    return {**variant, "published": kept}
