"""What a suite measures, as one hash, and in what two of them differ."""

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
    attacks = {a.name: [a.key(True).model_dump(mode="json"), a.counted, a.examples] for a in suite.attacks}
    return {**fields, "shape": list(suite.shape), "attacks": attacks}


def suite_key(suite: SuiteRecord, attacks: bool = True) -> str:
    """SHA-256 over all that rows of the suite are made of.

    Args:
        attacks: False to leave out the attacks with their budgets: to whom adversarial inputs matter alone.
    """
    measured = _measured(suite)
    return digest(measured if attacks else {**measured, "attacks": None})


def suite_differences(theirs: SuiteRecord, ours: SuiteRecord) -> list[str]:
    """What two suites measure differently: names of fields, and of attacks."""
    one, other = _measured(theirs), _measured(ours)
    found = [name for name in _MEASURED if one[name] != other[name]]
    names = sorted(one["attacks"].keys() | other["attacks"].keys())
    return found + [f"attack {name}" for name in names if one["attacks"].get(name) != other["attacks"].get(name)]
