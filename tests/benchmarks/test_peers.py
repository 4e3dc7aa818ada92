"""The comparison with the public libraries: its measuring, its store, its tables; and every adapter that can run."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from peers import __main__ as command
from peers import measure as measuring
from peers import store
from peers.comparison import LIBRARIES, OURS, Comparison, Entry, Library
from peers.comparisons import COMPARISONS
from peers.libraries import ours
from peers.measure import Counted, Measurement, judge, measure, median_interval
from peers.problem import Problem
from peers.render import document, verdicts
from peers.subjects import Subject, Unavailable, provider
from torch import Tensor, nn

from bench.contracts.defense import freeze
from bench.storing import provenance

SHAPE, CLASSES = (1, 4, 4), 10


class _Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, 16, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ self.weight.T


def subject(n: int = 6, randomized: bool = False) -> Subject:
    """A linear model with examples that it classifies correctly by construction."""
    model = freeze(_Linear())
    x = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1))
    return Subject("linear", model, x, model(x).argmax(1), n + 2, CLASSES, randomized, "digest")


def problem(norm: str = "linf", eps: float | None = 0.3, n: int = 6, **settings: Any) -> Problem:
    s = subject(n)
    return Problem(s.model, s.x, s.y, norm, eps, CLASSES, **settings)


# -- adapters of libraries that nobody has to install -----------------------------------------------------------


def step(problem: Problem, *, size: float) -> Tensor:
    """One step along the sign of the gradient of the label's logit."""
    x = problem.x.requires_grad_()
    picked = problem.model(x).gather(1, problem.y[:, None]).sum()
    (grad,) = torch.autograd.grad(picked, x)
    return (x - size * grad.sign()).clamp(0, 1).detach()


def nothing(problem: Problem) -> Tensor:
    """The image itself."""
    return problem.x


def raises(problem: Problem) -> Tensor:
    """An error."""
    raise ValueError("went\nwrong in /somewhere/on/this/machine/file.py")


def for_ever(problem: Problem) -> Tensor:
    """Never ends."""
    while True:
        problem.model(problem.x)


def comparison(*entries: Entry, eps: float | None = 0.3, name: str = "a-step") -> Comparison:
    return Comparison(name, "One step", "digits", 8, "linf", eps, "1 gradient", entries)


def fake(function: Callable[..., Tensor], **settings: Any) -> Entry:
    return Entry("fake", function, settings)


@pytest.fixture
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIBRARIES, "fake", Library("pytest", ()))
    monkeypatch.setitem(LIBRARIES, "absent", Library("absent-attacks", ("absent_attacks",)))


OUR_PGD = Entry(OURS, ours.run, {"attack": "pgd", "steps": 3})


# -- measuring --------------------------------------------------------------------------------------------------


def test_rows_are_counted_forward_and_backward() -> None:
    p = problem()
    counted = Counted(p.model)
    with torch.no_grad():
        counted(p.x[:2])
    x = p.x.requires_grad_()
    sums = counted(x).sum(0)
    for k in range(3):
        torch.autograd.grad(sums[k], x, retain_graph=True)
    counted(x)  # a graph that nobody asks for a gradient
    assert counted.calls == [[2, 0], [6, 18], [6, 0]]


def test_a_measurement_says_what_it_took_and_what_was_left() -> None:
    found = measure(lambda p: step(p, size=0.3), problem())
    assert (found.forward, found.backward) == (1, 1)
    assert found.examples == 6 and found.left == 6 - found.fooled and found.fooled > 0
    assert found.median is None and found.refused == 0
    assert found.seconds >= 0 and found.bare >= 0


def test_of_several_runs_the_first_is_judged_and_the_least_seconds_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    once = measuring._once
    clock = iter([(3.0, 1.5), (1.0, 2.5), (2.0, 0.5)])

    def scripted(*given: Any) -> Measurement:
        seconds, bare = next(clock)
        return dataclasses.replace(once(*given), seconds=seconds, bare=bare)

    monkeypatch.setattr(measuring, "_once", scripted)
    sizes = iter([0.3, 0.0, 0.0])
    found = measure(lambda p: step(p, size=next(sizes)), problem(), repeats=3)
    assert found.fooled > 0 and (found.seconds, found.bare) == (1.0, 0.5)
    assert next(clock, None) is next(sizes, None) is None


def test_ours_is_counted_like_any_other() -> None:
    found = measure(OUR_PGD.run, problem(eps=1e-6))
    assert found.left == 6
    assert found.backward == 3  # and forward: as many, the last point, the judge's pass, one image for the shape
    assert found.forward == pytest.approx(3 + 1 + 1 + 1 / 6)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda x: x + 0.31 * (0.5 - x).sign(), "outside the ball"),
        (lambda x: x - 2.0, "outside the box"),
        (lambda x: x * math.nan, "not finite"),
        (lambda x: x[:, :, :2], "shape"),
    ],
)
def test_a_point_that_breaks_a_rule_is_a_failed_attack(spoil: Callable[[Tensor], Tensor], reason: str) -> None:
    p = problem()
    found = judge(p, spoil(p.x))
    assert found.fooled == 0 and found.left == 6 and found.refused == 6
    assert found.reason.startswith(reason)


def test_rounding_at_the_edge_of_the_box_is_forgiven() -> None:
    p = problem(eps=1.0)
    corner = (p.x > 0.5).float()
    assert judge(p, corner - 5e-7).refused == 0
    assert judge(p, corner - 5e-6).refused > 0


def test_a_distance_counts_failures_as_infinite() -> None:
    p = problem(eps=None)
    assert judge(p, p.x).median == math.inf
    target = (p.y + 1) % CLASSES
    with_target = dataclasses.replace(p, targets=target)
    moved = (p.x + 0.4 * (p.model.weight[target] - p.model.weight[p.y]).view(-1, *SHAPE).sign()).clamp(0, 1)
    found = judge(with_target, moved)
    reached = p.model(moved).argmax(1) == target
    assert found.fooled == reached.sum() > 0
    expected = torch.where(reached, (moved - p.x).flatten(1).abs().amax(1), torch.inf).tolist()
    assert found.median == pytest.approx(sorted(expected)[2] / 2 + sorted(expected)[3] / 2, rel=1e-6)


def test_a_randomised_model_is_judged_on_fresh_draws() -> None:
    class Coin(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.one_hot((torch.rand(len(x)) < 0.5).long(), 2).float()

    p = Problem(freeze(Coin()), torch.rand(50, *SHAPE), torch.zeros(50, dtype=torch.int64), "linf", 0.1, 2)
    found = judge(dataclasses.replace(p, randomized=True), p.x)
    assert found.fooled / 50 == pytest.approx(0.5, abs=0.03)


def test_every_run_starts_from_the_same_global_seeds_and_leaves_none_behind() -> None:
    drawn = []

    def noisy(p: Problem) -> Tensor:
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))  # noqa: NPY002
        return p.x

    before = torch.random.get_rng_state()
    for seed in (0, 0, 1):
        measure(noisy, problem(seed=seed))
    assert drawn[0] == drawn[1] and not set(drawn[0]) & set(drawn[2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_interval_of_a_median() -> None:
    assert median_interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    middle, low, high = median_interval([float(i) for i in range(101)])
    assert middle == 50 and (low, high) == (40, 60)
    assert median_interval([1.0, math.inf, math.inf])[0] == math.inf


# -- running and storing ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_fakes")
def test_whatever_a_library_does_becomes_a_record(tmp_path: Path) -> None:
    entries = (fake(nothing), fake(raises), fake(for_ever), Entry("absent", nothing, {}))
    kept = store.Store(tmp_path / "peers.jsonl")
    found = store.run([comparison(*entries)], lambda *_: subject(), kept, limit=0.2)["a-step"]
    assert [record.status for record in found] == ["ok", "error", "stopped", "missing"]
    assert found[0].total == 8 and found[0].measurement is not None and found[0].measurement.left == 6
    assert found[1].message == "ValueError: went wrong in file.py"
    assert "0.2 s" in found[2].message and "absent_attacks" in found[3].message


@pytest.mark.usefixtures("_fakes")
def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "peers.jsonl"
    told: list[str] = []

    def go(*entries: Entry, **settings: Any) -> list[store.Record]:
        told.clear()
        kept = store.Store(path)
        return store.run([comparison(*entries)], lambda *_: subject(), kept, progress=told.append, **settings)["a-step"]

    first = go(OUR_PGD, fake(step, size=0.3))
    assert len(told) == 2 and len(path.read_text().splitlines()) == 2
    path.write_text(path.read_text() + '{"key": "half a li')
    assert go(OUR_PGD, fake(step, size=0.3)) == first and told == []
    assert all(json.loads(line) for line in path.read_text().splitlines())
    again = go(OUR_PGD, fake(step, size=0.2), fake(raises))
    assert again[0] == first[0] and len(told) == 2, "other settings are measured, and errors are tried again"
    assert len(go(OUR_PGD, fake(step, size=0.2), fresh=True)) == 2 and len(told) == 2
    assert go(fake(step, size=0.1), only_stored=lambda _: True) == [] and told == []


# -- the document -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_fakes")
def test_the_document_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weak = Entry(OURS, nothing, {})
    both = (
        comparison(weak, OUR_PGD, fake(step, size=0.3), fake(step, size=0.31), fake(raises)),
        comparison(weak, fake(step, size=0.3), eps=None, name="a-distance"),
        comparison(fake(raises), name="errors-only"),
    )
    monkeypatch.setattr(store, "get_attack", lambda _: OUR_PGD)
    monkeypatch.setattr(store, "_key", lambda comparison, entry, _: f"{comparison.name} {entry.label}")
    results = store.run(both, lambda *_: subject(), store.Store(tmp_path / "peers.jsonl"))
    judged = [verdict for c in both for verdict in verdicts(c, results[c.name])]
    assert [verdict.met for verdict in judged] == [False, True, False]
    assert all(verdict.best is not None and verdict.best.label == "step(size=0.3)" for verdict in judged)
    text = document(both, results, provenance.start("make compare"), "make compare")
    assert "Goals met in 1 of 3 rows" in text and text.count("**no**") == 2
    assert "ValueError: went wrong in file.py" in text
    assert "6 refused, e.g. outside the ball: linf" in text
    assert "inf [inf, inf]" in text
    headings = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.M)}
    links = re.findall(r"\]\(#([^)]+)\)", text)
    assert links and set(links) <= headings
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "COMPARISONS", (comparison(OUR_PGD), comparison(OUR_PGD, eps=0.2, name="other")))
    files = ["--out", str(tmp_path / "page.md"), "--cache", str(tmp_path / "cache.jsonl")]
    monkeypatch.setattr(command, "provider", lambda _: lambda *_: subject())
    result = CliRunner().invoke(command.main, ["--only", "a-*", *files], catch_exceptions=False)
    assert result.exit_code == 0
    text = (tmp_path / "page.md").read_text()
    assert "`pgd(steps=3)`" in text and text.count("Not measured") == 1
    assert str(tmp_path) not in text
    assert CliRunner().invoke(command.main, ["--only", "b-*", *files]).exit_code == 2
    assert "other" in CliRunner().invoke(command.main, ["--list"]).output


# -- the comparisons themselves ---------------------------------------------------------------------------------


def test_names_are_unique_and_every_comparison_has_both_sides() -> None:
    assert len({c.name for c in COMPARISONS}) == len(COMPARISONS)
    for c in COMPARISONS:
        labels = [(entry.library, entry.label) for entry in c.entries]
        assert len(set(labels)) == len(labels), c.name
        assert c.peers and len(c.peers) < len(c.entries), c.name
        assert {entry.library for entry in c.entries} <= set(LIBRARIES)


def test_the_models_of_the_repository_are_there_and_others_say_what_they_need() -> None:
    provide = provider(None)
    digits = provide("digits", 30)
    assert digits.total == 30 and len(digits.x) <= 30
    assert torch.equal(digits.model(digits.x).argmax(1), digits.y)
    noisy = provide("noisy-digits", 30)
    assert noisy.randomized and not torch.equal(noisy.model(noisy.x), noisy.model(noisy.x))
    assert noisy.digest != digits.digest
    with pytest.raises(Unavailable, match="CIFAR-10"):
        provide("cnn-a", 30)


#: Budgets with which an adapter shows that it still fits its library.
_SMALL = {"steps": 2, "restarts": 1, "searches": 1, "queries": 20, "classes": 2, "draws": 2, "population": 4}


def _small(entry: Entry) -> Entry:
    settings = {key: _SMALL.get(key, value) for key, value in entry.settings.items()}
    if "searches" in settings:
        settings["steps"] = 10  # adv-lib looks at every tenth of them
    return dataclasses.replace(entry, settings=settings)


def _peers() -> list[Any]:
    """Every adapter once in each norm, without the compositions, whose budgets are fixed."""
    cases = {}
    for c in COMPARISONS:
        for entry in c.peers:
            if entry.function.__name__ != "autoattack":
                name = f"{entry.library}-{entry.function.__name__}-{c.norm}"
                cases.setdefault(name, pytest.param(c, _small(entry), id=name))
    return list(cases.values())


@pytest.mark.parametrize(("c", "entry"), _peers())
def test_the_adapters_fit_their_libraries(c: Comparison, entry: Entry) -> None:
    for module in LIBRARIES[entry.library].modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            pytest.skip(f"{LIBRARIES[entry.library].distribution} is not installed (make peers): {error}")
    s = provider(None)("digits", 3)
    targets = (s.y + 1) % CLASSES if c.targeted else None
    found = measure(entry.run, Problem(s.model, s.x, s.y, c.norm, c.eps, CLASSES, targets=targets), limit=30)
    assert found.examples == len(s.x) and found.forward >= 1
    assert found.refused == 0 or entry.library == "adv-lib", found.reason  # its FAB may end outside the ball


def test_adapters_name_their_attacks_for_the_document() -> None:
    for c in COMPARISONS:
        for entry in c.peers:
            assert entry.function.__doc__, entry.label
    assert Entry("x", step, {"size": 1 / 3}).label == "step(size=0.333)"
