"""Entry points of fake distributions on a temporary path, found by importlib.metadata as real ones are."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from bench.contracts.errors import InputError, PluginError
from bench.plugins.registry import DEFENSES, Entry, Registry

GROUP = "bench.test_plugins"


def install(site: Path, name: str, version: str, entries: dict[str, str]) -> None:
    """Write the metadata of an installed distribution with these entry points."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{key} = {value}" for key, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]) + "\n")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "zoo", "2.1", {"square": "math:sqrt", "broken": "no_such_module_here:thing"})
    install(tmp_path, "another", "0.3", {"square": "math:exp", "typo": "math:sqroot"})
    return Registry(GROUP, "gadget")


def test_entries_say_where_they_come_from_without_importing(registry: Registry) -> None:
    assert registry.names() == ["broken", "square", "typo"]
    assert registry.entry("broken") == Entry("broken", "no_such_module_here:thing", "zoo", "2.1")
    assert registry.entry("broken").origin == "zoo 2.1"


def test_unknown_name_is_answered_with_the_closest_one(registry: Registry) -> None:
    with pytest.raises(InputError, match=r"gadget 'sqare' does not exist \(did you mean 'square'\?\)"):
        registry.load("sqare")


@pytest.mark.parametrize(("name", "origin", "reason"), [
    ("broken", "zoo 2.1", "ModuleNotFoundError: No module named 'no_such_module_here'"),
    ("typo", "another 0.3", "AttributeError: module 'math' has no attribute 'sqroot'"),
])  # fmt: skip
def test_a_broken_plugin_is_one_line_with_its_own_error(
    registry: Registry, name: str, origin: str, reason: str
) -> None:
    with pytest.raises(PluginError) as caught:
        registry.load(name)
    assert str(caught.value).startswith(f"gadget {name!r} ({origin}) cannot be imported: {reason}")
    assert "\n" not in str(caught.value)


def test_a_module_that_exits_while_it_is_imported_does_not_end_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaves_early.py").write_text("raise SystemExit('needs\\n a licence')")
    install(tmp_path, "leaver", "1.0", {"early": "leaves_early:thing"})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match="SystemExit: needs a licence"):
        Registry(GROUP, "gadget").load("early")


def test_a_name_claimed_twice_goes_to_the_first_distribution_and_is_reported(registry: Registry) -> None:
    assert registry.entry("square").origin == "another 0.3"
    assert registry.duplicates() == [
        "gadget 'square' of zoo 2.1 (math:sqrt) is ignored: the name belongs to another 0.3 (math:exp)"
    ]


def test_the_distribution_shipped_here_keeps_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "aaa", "1.0", {"square": "math:exp"})
    install(tmp_path, "worst-case-bench", "9.9", {"square": "math:sqrt"})
    monkeypatch.syspath_prepend(tmp_path)
    assert Registry(GROUP, "gadget").entry("square").target == "math:sqrt"


def test_load_all_skips_the_broken_ones_and_reports_every_problem(registry: Registry) -> None:
    loaded, problems = registry.load_all()
    assert list(loaded) == ["square"]
    assert [line.split()[1] for line in problems] == ["'square'", "'broken'", "'typo'"]


def test_metadata_is_read_once_for_all_entries_of_a_distribution(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()
    whole = PathDistribution.read_text

    def counting(distribution: PathDistribution, name: str) -> str | None:
        if name == "METADATA":
            read[distribution._path.name] += 1  # type: ignore[attr-defined]
        return whole(distribution, name)

    monkeypatch.setattr(PathDistribution, "read_text", counting)
    registry.names()
    once = {name: read[name] for name in ("zoo-2.1.dist-info", "another-0.3.dist-info")}
    assert all(1 <= n <= 3 for n in once.values()), "name and version, and which distribution of a name comes first"
    registry.entry("square"), registry.entries(), registry.duplicates(), registry.load_all()
    assert {name: read[name] for name in once} == once


def test_what_is_installed_later_is_found(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "late" not in registry.names()
    (tmp_path / "more").mkdir()
    install(tmp_path / "more", "later", "1.0", {"late": "math:sqrt"})
    monkeypatch.syspath_prepend(tmp_path / "more")
    assert registry.entry("late").origin == "later 1.0"


def test_without_any_plugin_the_message_says_to_install() -> None:
    with pytest.raises(InputError, match="no gadget is registered; install the package first"):
        Registry("bench.nothing_here", "gadget").load("square")


def test_the_shipped_plugins_are_registered() -> None:
    assert {"none", "ours"} <= set(DEFENSES.names()), "run `pip install -e .`"
    assert DEFENSES.entry("ours").distribution == "worst-case-bench"
