"""How strongly a defense is kept apart from its judge: the levels, from none to the strongest."""

from __future__ import annotations

from typing import Literal, get_args

#: ``none``: in the judge's process. ``process``: in one of its own, with limits. ``landlock``: that, without files,
#: sockets or a view of other processes. ``bubblewrap``: that, in namespaces of its own.
Level = Literal["none", "process", "landlock", "bubblewrap"]
LEVELS: tuple[Level, ...] = get_args(Level)
#: What a user may ask for; ``auto``: the strongest that passes its self-test for code of a third party, else none.
ASKED = ("auto", *LEVELS)


def weakest(levels: list[Level]) -> Level:
    """The least of several levels."""
    return min(levels, key=LEVELS.index)
