"""Named plugins: entry points of installed distributions, loaded only when they are used.

A package adds a defense or an attack without touching this one, by naming it in its ``pyproject.toml``::

    [project.entry-points."bench.defenses"]
    mine = "my_package.module:MyDefense"

The plugins shipped here are registered in exactly the same way. Where two distributions claim one name, the
one shipped here wins (a published number must not change its meaning because something else was installed),
then the distribution whose name sorts first; :meth:`Registry.duplicates` says so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from bench.contracts.errors import InputError, PluginError, did_you_mean, raised

#: The distribution whose entries win when a name is claimed twice.
BUILT_IN = "worst-case-bench"


def import_failed(what: str, error: BaseException) -> PluginError:
    """The one-line error for a plugin whose import raised ``error``."""
    return raised(f"{what} cannot be imported:", error)


@dataclass(frozen=True)
class Entry:
    """A registered plugin: its name, what it points to (``module:attr``) and the distribution it is from."""

    name: str
    target: str
    distribution: str
    version: str

    @property
    def origin(self) -> str:
        """Distribution name and version, e.g. ``worst-case-bench 0.1.0``."""
        return f"{self.distribution} {self.version}".strip()


@dataclass(frozen=True)
class _Registered:
    """A registration, and what loads it."""

    entry: Entry
    point: EntryPoint


class Registry:
    """The plugins of one entry-point group.

    What is installed is read once, and again only where ``sys.path`` has changed: reading takes milliseconds, and a
    plan asks a thousand times.

    Args:
        group: the entry-point group, e.g. ``bench.defenses``.
        kind: what its members are called in messages, e.g. ``defense``.
    """

    def __init__(self, group: str, kind: str) -> None:
        self.group = group
        self.kind = kind
        self._path: tuple[str, ...] | None = None
        self._read: list[_Registered] = []

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._winners())

    def built_in(self) -> list[str]:
        """Names of the plugins that are shipped here."""
        return [entry.name for entry in self.entries() if entry.distribution == BUILT_IN]

    def entries(self) -> list[Entry]:
        """All registered plugins, sorted by name; nothing is imported."""
        return [registered.entry for _, registered in sorted(self._winners().items())]

    def entry(self, name: str) -> Entry:
        """The plugin of that name. Raises :class:`InputError` with a suggestion when there is none."""
        return self._registered(name).entry

    def load(self, name: str) -> object:
        """Import the plugin of that name and return what it points to.

        Raises:
            InputError: when no plugin has that name.
            PluginError: when importing it fails; the message carries the plugin's own error.
        """
        registered = self._registered(name)
        try:
            return registered.point.load()
        except (Exception, SystemExit) as error:  # whatever a plugin raises while it is imported
            raise import_failed(f"{self.kind} {name!r} ({registered.entry.origin})", error) from error

    def load_all(self, names: Iterable[str] | None = None) -> tuple[dict[str, object], list[str]]:
        """Import every plugin; returns those that could be, and one line about each problem met.

        Args:
            names: only these.
        """
        loaded: dict[str, object] = {}
        problems = self.duplicates()
        for name in self.names() if names is None else names:
            try:
                loaded[name] = self.load(name)
            except PluginError as error:
                problems.append(str(error))
        return loaded, problems

    def duplicates(self) -> list[str]:
        """One line for every registration that another one of the same name hides."""
        winners = self._winners()
        lines = []
        for registered in self._all():
            used, hidden = winners[registered.entry.name].entry, registered.entry
            if hidden != used:
                lines.append(
                    f"{self.kind} {hidden.name!r} of {hidden.origin} ({hidden.target}) is ignored: "
                    f"the name belongs to {used.origin} ({used.target})"
                )
        return lines

    def _all(self) -> list[_Registered]:
        """Every registration; of those of one name, that which wins first."""
        if self._path != tuple(sys.path):

            def order(registered: _Registered) -> tuple[bool, str, str]:
                entry = registered.entry
                return entry.distribution != BUILT_IN, entry.distribution, entry.target

            self._read = sorted(_described(entry_points(group=self.group)), key=order)
            self._path = tuple(sys.path)
        return self._read

    def _winners(self) -> dict[str, _Registered]:
        winners: dict[str, _Registered] = {}
        for registered in self._all():
            winners.setdefault(registered.entry.name, registered)
        return winners

    def _registered(self, name: str) -> _Registered:
        winners = self._winners()
        if not winners:
            raise InputError(f"no {self.kind} is registered; install the package first (pip install -e .)")
        if name not in winners:
            raise InputError(f"{self.kind} {name!r} does not exist{did_you_mean(name, winners)}")
        return winners[name]


def _described(points: Iterable[EntryPoint]) -> list[_Registered]:
    """Registrations with their distributions, whose metadata is read once each."""
    known: dict[int, tuple[str, str]] = {}
    found = []
    for point in points:
        if id(point.dist) not in known:
            known[id(point.dist)] = ("", "") if point.dist is None else (point.dist.name, point.dist.version)
        found.append(_Registered(Entry(point.name, point.value, *known[id(point.dist)]), point))
    return found


DEFENSES = Registry("bench.defenses", "defense")
ATTACKS = Registry("bench.attacks", "attack")
DATA = Registry("bench.data", "data set")
