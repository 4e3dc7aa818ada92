"""Named plugins: entry points of installed distributions, loaded only when they are used.

A package adds a defense or an attack without touching this one, by naming it in its ``pyproject.toml``::

    [project.entry-points."bench.defenses"]
    mine = "my_package.module:MyDefense"

The plugins shipped here are registered in exactly the same way. Where two distributions claim one name, the
one shipped here wins (a published number must not change its meaning because something else was installed),
then the distribution whose name sorts first; :meth:`Registry.duplicates` says so.
"""

from __future__ import annotations

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


class Registry:
    """The plugins of one entry-point group.

    Args:
        group: the entry-point group, e.g. ``bench.defenses``.
        kind: what its members are called in messages, e.g. ``defense``.
    """

    def __init__(self, group: str, kind: str) -> None:
        self.group = group
        self.kind = kind

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._winners())

    def built_in(self) -> list[str]:
        """Names of the plugins that are shipped here."""
        return [entry.name for entry in self.entries() if entry.distribution == BUILT_IN]

    def entries(self) -> list[Entry]:
        """All registered plugins, sorted by name; nothing is imported."""
        return [_describe(point) for _, point in sorted(self._winners().items())]

    def entry(self, name: str) -> Entry:
        """The plugin of that name. Raises :class:`InputError` with a suggestion when there is none."""
        return _describe(self._point(name))

    def load(self, name: str) -> object:
        """Import the plugin of that name and return what it points to.

        Raises:
            InputError: when no plugin has that name.
            PluginError: when importing it fails; the message carries the plugin's own error.
        """
        point = self._point(name)
        try:
            return point.load()
        except (Exception, SystemExit) as error:  # whatever a plugin raises while it is imported
            raise import_failed(f"{self.kind} {name!r} ({_describe(point).origin})", error) from error

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
        for point in self._points():
            used, hidden = _describe(winners[point.name]), _describe(point)
            if hidden != used:
                lines.append(
                    f"{self.kind} {point.name!r} of {hidden.origin} ({hidden.target}) is ignored: "
                    f"the name belongs to {used.origin} ({used.target})"
                )
        return lines

    def _points(self) -> list[EntryPoint]:
        def order(point: EntryPoint) -> tuple[bool, str, str]:
            entry = _describe(point)
            return entry.distribution != BUILT_IN, entry.distribution, entry.target

        return sorted(entry_points(group=self.group), key=order)

    def _winners(self) -> dict[str, EntryPoint]:
        winners: dict[str, EntryPoint] = {}
        for point in self._points():
            winners.setdefault(point.name, point)
        return winners

    def _point(self, name: str) -> EntryPoint:
        winners = self._winners()
        if not winners:
            raise InputError(f"no {self.kind} is registered; install the package first (pip install -e .)")
        if name not in winners:
            raise InputError(f"{self.kind} {name!r} does not exist{did_you_mean(name, winners)}")
        return winners[name]


def _describe(point: EntryPoint) -> Entry:
    if point.dist is None:
        return Entry(point.name, point.value, "", "")
    return Entry(point.name, point.value, point.dist.name, point.dist.version)


DEFENSES = Registry("bench.defenses", "defense")
ATTACKS = Registry("bench.attacks", "attack")
DATA = Registry("bench.data", "data set")
