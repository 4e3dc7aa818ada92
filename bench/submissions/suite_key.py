"""What a suite measures of a defense, as one hash, and in what two of them differ."""

from __future__ import annotations

from typing import Any

from bench.storing.digest import digest
from bench.storing.records import SuiteRecord

#: What decides numbers. Not among them: how it is described, how runs are cut up, what is shown besides.
_MEASURED = (
    "protocol",
    "data_version",
    "split",
    "shape",
    "low",
    "high",
    "levels",
    "ids",
    "digests",
    "norm",
    "eps",
    "seed",
    "towards",
    "draws_select",
    "draws_report",
    "false_positive_rate",
)


def _measured(suite: SuiteRecord) -> dict[str, Any]:
    fields = {name: getattr(suite, name) for name in _MEASURED}
    attacks = {
        a.name: [a.key(detector=True, randomised=True).model_dump(mode="json"), a.counted, a.examples]
        for a in suite.attacks
    }
    return {**fields, "shape": list(suite.shape), "attacks": attacks}


def suite_key(suite: SuiteRecord, reference: str | None) -> str:
    """SHA-256 over all that a defense's rows of the suite are made of.

    Args:
        reference: what the defense is built from: its own number of examples counts, those of others do not. None to
            leave out numbers and attacks with their budgets: to whom adversarial inputs matter alone.
    """
    measured = _measured(suite)
    if reference is None:
        return digest({**measured, "attacks": None})
    number = suite.examples_of.get(reference)
    return digest(measured if number is None else {**measured, "examples_of": number})


def suite_differences(theirs: SuiteRecord, ours: SuiteRecord, reference: str | None = None) -> list[str]:
    """What two suites measure differently: names of fields, and of attacks.

    Args:
        reference: what the defense is built from whose rows are meant; None for those of all.
    """
    one, other = _measured(theirs), _measured(ours)
    found = [name for name in _MEASURED if one[name] != other[name]]
    numbers = [suite.examples_of if reference is None else suite.examples_of.get(reference) for suite in (theirs, ours)]
    found += ["examples_of"] * (numbers[0] != numbers[1])
    names = sorted(one["attacks"].keys() | other["attacks"].keys())
    return found + [f"attack {name}" for name in names if one["attacks"].get(name) != other["attacks"].get(name)]
