"""The errors a user can meet. Each message is one line that names the offending value and the rule."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave is wrong. The command line prints the message and exits with code 2."""


class NewerSchemaError(InputError):
    """A results file was written by a newer version of the harness."""


class KnowledgeError(RuntimeError):
    """An attack asked its target for something that its declared knowledge does not include."""


class NotApplicable(RuntimeError):
    """An attack cannot be run in this setting (for example a norm it lacks); the message says why."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)``, or the list of known names when nothing is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (known: {', '.join(known)})" if known else ""
