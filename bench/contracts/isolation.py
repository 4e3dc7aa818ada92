"""How strongly a defense is kept apart from its judge: the levels, from none to the strongest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

#: ``none``: in the judge's process. ``process``: in one of its own, with limits. ``landlock``: that, without files,
#: sockets or a view of other processes. ``bubblewrap``: that, in namespaces of its own.
Level = Literal["none", "process", "landlock", "bubblewrap"]
LEVELS: tuple[Level, ...] = get_args(Level)
#: What a user may ask for; ``auto``: the strongest that passes its self-test for code of a third party, else none.
ASKED = ("auto", *LEVELS)
#: What each is to who reads a result.
MEANING: dict[Level, str] = {
    "none": "in the judge's own process",
    "process": "in a process of its own, which sees files and the network",
    "landlock": "in a process of its own, without files, sockets or a view of other processes",
    "bubblewrap": "in namespaces of its own, without files, sockets or a view of other processes",
}


def weakest(levels: Iterable[Level]) -> Level:
    """The least of several levels."""
    return min(levels, key=LEVELS.index)
