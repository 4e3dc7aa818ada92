"""The study of a transformation: its expectation, the bases beside it, and the verdict that is made from results."""

from __future__ import annotations

import base64
import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from html_page import Page
from small_bench import STEP, Bench
from stand_ins import run_bench
from torch import Tensor, nn
from written_results import Results, attack_record, defense_record, probe_record, suite_record

from bench.contracts.defense import BareModel, Defense, Guide, freeze
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.threat import Lp
from bench.data.splits import Split
from bench.reference.verdict import PAGE, PLOT, reference, write
from bench.studies.transformation import record as stored
from bench.studies.transformation.claims import RUNGS, persistent, sentences, verdict
from bench.studies.transformation.measure import Beside, expectation, measure
from bench.studies.transformation.record import Base, Expectation, Transformation
from bench.studies.transformation.tables import SUITE
from bench.suites.reading import load_config
from leaderboard import build

ROOT = Path(__file__).parents[3]
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]


class Bright(nn.Module):
    """Calls an image bright (1) where its mean is above 1/2."""

    def forward(self, x: Tensor) -> Tensor:
        mean = 20 * (x.flatten(1).mean(1, keepdim=True) - 0.5)
        return torch.cat([-mean, mean], 1)


class Moved(Defense):
    """g adds 0.1 and noise of mean zero; its guide turns the classes round."""

    randomized = True

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(DataInfo("toy", InputSpec(shape), 2))
        self.classifier = Bright()

    def transform(self, x: Tensor) -> Tensor:
        return x + 0.1 + 0.05 * torch.randn_like(x)

    def guide(self) -> Guide:
        return Guide(lambda x: -Bright()(x), "least-likely", lambda x, label: self.transform(x))


def _images(shape: tuple[int, ...]) -> Split:
    means = torch.tensor([0.2, 0.45, 0.55, 0.8])
    x = means.view(-1, 1, 1, 1).expand(4, *shape).clone()
    return Split(x, torch.tensor([0, 0, 1, 1]), [f"e{i}" for i in range(4)])


@pytest.mark.parametrize("shape", SHAPES)
def test_it_measures_where_images_go_and_what_the_bases_are_worth(shape: tuple[int, ...]) -> None:
    split, defense = _images(shape), freeze(Moved(shape))
    other = Beside(freeze(BareModel(Bright(), defense.data)), 12.0)
    found = measure(defense, split, Lp("linf", 0.1), beside={"other": other}, draws=200)
    assert found.mean == pytest.approx(0.1, abs=0.005)
    assert found.rms == pytest.approx(0.1, abs=0.005)
    by_name = {base.name: base for base in found.bases}
    assert list(by_name) == ["guide", "classifier", "other"]
    assert by_name["guide"].right == [False] * 4
    for name in ("classifier", "other"):  # 0.45 and 0.55 are within 0.1 of the boundary, the others are not
        assert by_name[name].right == [True] * 4
        assert by_name[name].robust == [True, False, False, True]
    assert by_name["other"].training_seconds == 12.0
    assert found.fixed_start is None
    shown = found.expectations[0]
    assert shown.shape == (*shape[1:], shape[0])
    assert len(base64.b64decode(shown.shift)) == math.prod(shape)
    assert set(base64.b64decode(shown.image)) == {0}  # the darkest image of the split
    assert shown.scale == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("n", [1, 101])
def test_the_expectation_is_that_of_every_row(n: int) -> None:
    x = torch.rand(n, 1, 8, 8)
    moved = expectation(Moved((1, 8, 8)), x, 300) - x
    assert moved.shape == x.shape
    assert (moved - 0.1).abs().max() < 0.02


def test_what_cannot_be_measured_is_refused() -> None:
    split, threat = _images((1, 8, 8)), Lp("linf", 0.1)
    with pytest.raises(InputError, match="declares no network"):
        measure(freeze(BareModel(Bright(), DataInfo("toy", InputSpec((1, 8, 8)), 2))), split, threat)
    defense = freeze(Moved((1, 8, 8)))
    with pytest.raises(InputError, match="other is randomised"):
        measure(defense, split, threat, beside={"other": Beside(defense, None)})


def test_the_command_measures_ours_on_digits(tmp_path: Path) -> None:
    bench = Bench(tmp_path).configure({"step": STEP}, examples=6)
    where = ["--suite", "tiny", "--config", tmp_path / "bench.yaml", "--results", bench.results, "--device", "cpu"]
    said = run_bench("study", "transformation", *where, "--defense", "ours", "--beside", "madry", "--set", "radius=0.5")
    assert said.code == 0, said.err
    assert "madry: " in said.out
    (path,) = bench.results.glob("*/*/transformation.json")
    found = stored.read(bench.store, path.parent.name)
    assert found is not None
    assert len(found.ids) == 6
    assert found.fixed_start is not None
    assert {base.name for base in found.bases} == {"guide", "classifier", "madry"}
    assert all(base.training_seconds for base in found.bases if base.name == "madry")


# -- the verdict ------------------------------------------------------------------------------------------------------

ENTRIES = load_config().suites[SUITE].attacks
N, DRAWS = 40, 20


def _results(root: Path, left: int, attacks: dict[str, list[int]], base: int, ours: str = "ours") -> None:
    """A ladder in which ``left`` of 40 images survive ``o2-bpda-i``, and ``base`` of them the external network."""
    records = [attack_record(name) for name in ["o2-bpda-i", *attacks]]
    suite = suite_record(records, n=N, name=SUITE, draws_select=DRAWS, draws_report=DRAWS, shard_size=20)
    results = Results(root, suite)
    results.write_suite()
    defense = defense_record(ours, probe_record(randomized=True))
    cells: dict[str, Any] = {"clean": [DRAWS] * 36 + [0] * 4, "o2-bpda-i": [DRAWS] * left + [0] * (N - left), **attacks}
    results.write_defense(defense, cells)
    robust = [i < base for i in range(N)]
    record = Transformation(
        defense=defense.key, ids=suite.ids, draws=64, mean=0.1, rms=0.15, largest=0.2, expectations=[], seconds=8.0,
        bases=[Base(name="guide", right=[True] * N, robust=robust, attack="cascade", seconds=2.0)],
    )  # fmt: skip
    stored.write(results.store, ours, record)


@pytest.mark.parametrize(
    ("left", "base", "says", "where"),
    [
        (10, 10, "It falls: from 90.0 % clean to 25.0 %", "it falls to its static base"),
        (2, 20, "It falls: from 90.0 % clean to 5.0 %", "it falls below its static base"),
        (20, 2, "It falls: from 90.0 % clean to 50.0 %", "it falls but stays above its static base"),
        (36, 10, "It holds so far: from 90.0 % clean to 90.0 %", ""),
        (33, 33, "It may hold or fall: from 90.0 % clean to 82.5 %", ""),
    ],
)
def test_the_sentences_follow_the_numbers(tmp_path: Path, left: int, base: int, says: str, where: str) -> None:
    _results(tmp_path, left, {}, base)
    said = " ".join(verdict(tmp_path).sentences)
    assert says in said
    assert ("In one sentence: " in said) == bool(where)
    assert where in said
    assert f"{len(_rungs()) - 1} of {len(_rungs())} attacks of the ladder are not complete" in said
    assert "4.0 times the time of inference" in said
    assert "a loss of" in said


def test_what_is_complete_is_not_said_to_be_open(tmp_path: Path) -> None:
    _results(tmp_path, 36, {}, 10)
    found = verdict(tmp_path)
    whole = replace(found, rungs=[replace(rung, command="", robust=found.worst) for rung in found.rungs])
    assert not any("Not all has been run" in one for one in sentences(whole))
    assert any(one.startswith("It holds: ") for one in sentences(whole))


def test_without_results_everything_names_its_command(tmp_path: Path) -> None:
    found = verdict(tmp_path)
    assert found.plot == ""
    assert [rung.name for rung in found.rungs] == _rungs()
    page = reference(found)
    for name in _rungs():
        assert f"not run yet: `bench evaluate --suite ours-ladder --defense ours --attack {name} " in page
    assert "not run yet: `bench study transformation --suite ours-ladder --defense ours " in page
    assert "82.9 / not run yet" in page
    assert "`bench evaluate --suite ours-steps --all --results results`" in page


def test_the_page_has_the_numbers_and_the_plot(tmp_path: Path) -> None:
    _results(tmp_path / "results", 10, {"o1-as-released": [DRAWS] * 36 + [0] * 4}, 10)
    write(tmp_path, tmp_path / "results")
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert "| O1 | BPDA-I as released, defects included | `o1-as-released` | 10 | 40 | 90.0 [" in page
    assert "scored on fresh ones: 25.0 [" in page
    assert "| f_ext alone | 100.0 | 25.0 | +0.0 ± 0.0 | 4.0 |" in page
    assert f"]({PLOT})" in page
    plot = ET.fromstring((tmp_path / PLOT).read_text(encoding="utf-8"))
    titles = [title.text or "" for title in plot.iter("{http://www.w3.org/2000/svg}title")]
    assert any(title.startswith("o2-bpda-i: 25.0 % [") for title in titles)
    assert len(plot.findall(".//{http://www.w3.org/2000/svg}circle")) == 2
    texts = {text.text for text in plot.iter("{http://www.w3.org/2000/svg}text")}
    assert {"clean", "worst case", "f_ext alone", "O1", "O2"} <= texts


def test_the_site_has_it_as_a_page(tmp_path: Path) -> None:
    _results(tmp_path / "results", 10, {}, 10)
    store = Results(tmp_path / "results", suite_record([], name=SUITE)).store
    record = stored.read(store, "ours")
    assert record is not None
    grey = base64.b64encode(bytes(range(4))).decode()
    shown = Expectation(id="e0", label=1, shape=(2, 2, 1), image=grey, shift=grey, scale=0.1)
    stored.write(store, "ours", record.model_copy(update={"expectations": [shown]}))
    index = build(tmp_path / "results", tmp_path / "site")
    (path,) = index.parent.glob("**/verdict.html")
    page = Page(path)
    assert "It falls: from 90.0 % clean to 25.0 %" in page.text
    assert "82.9 / not run yet" in page.text
    assert page.text.count(f"--suite {SUITE} --defense ours --attack") == 0  # one command for the ladder, not one a row
    assert page.text.count("an attack alone with --attack and its name") == 1
    assert "25.0 % [14.2, 40.2]" in page.text
    assert all("scope" in attributes for attributes in page.elements("th"))
    assert "<svg" in path.read_text(encoding="utf-8")
    images = [path.parent / image["src"] for image in page.elements("img")]
    assert len(images) == 2
    assert all(image.is_file() for image in images)
    (defense,) = index.parent.glob("**/defenses/ours.html")
    assert "verdict.html" in defense.read_text(encoding="utf-8")


def test_a_record_of_other_weights_is_not_shown(tmp_path: Path) -> None:
    _results(tmp_path, 10, {}, 10)
    store = Results(tmp_path, suite_record([], name=SUITE)).store
    record = stored.read(store, "ours")
    assert record is not None
    assert record.defense is not None
    other = record.defense.model_copy(update={"weights": "others"})
    stored.write(store, "ours", record.model_copy(update={"defense": other}))
    assert verdict(tmp_path).against == []


def test_a_base_is_compared_on_the_same_images_alone(tmp_path: Path) -> None:
    _results(tmp_path, 10, {}, 10)
    store = Results(tmp_path, suite_record([], name=SUITE)).store
    record = stored.read(store, "ours")
    assert record is not None
    ids = [*record.ids[:20], *(f"other {i}" for i in range(20))]
    base = record.bases[0].model_copy(update={"right": [True] * 15 + [False] * 25, "robust": [True] * 5 + [False] * 35})
    stored.write(store, "ours", record.model_copy(update={"ids": ids, "bases": [base]}))
    (found,) = verdict(tmp_path).against
    assert (found.clean, found.robust, found.difference) == (0.75, 0.25, 0.25)  # 10 of the 20 survive


def test_images_that_an_attack_has_not_reached_say_nothing(tmp_path: Path) -> None:
    _results(tmp_path, 10, {"o1-as-released": [0] * 5 + [DRAWS] * 15}, 10)
    found = verdict(tmp_path)
    assert found.standard is not None
    assert found.worst is not None
    assert (found.n, found.standard.value, found.worst.value) == (20, 1.0, 0.25)


def test_the_same_input_again() -> None:
    survived = np.array([1.0, 0.5, 0.0])
    assert persistent(survived, 10, 1) == pytest.approx(0.5)
    assert persistent(survived, 10, 2) == pytest.approx((1 + math.comb(5, 2) / math.comb(10, 2)) / 3)
    assert persistent(survived, 10, 6) == pytest.approx(1 / 3)


def test_every_rung_is_in_the_suite_and_explained() -> None:
    assert sorted({int(name[1:].partition("-")[0]) for name in _rungs()}) == sorted(RUNGS) == list(range(13))


def test_the_published_page_is_that_of_the_published_results() -> None:
    text = (ROOT / "docs" / PAGE).read_text(encoding="utf-8")
    assert text == reference(verdict(ROOT / "results")), "write it again: make docs"


def _rungs() -> list[str]:
    return [name for name in ENTRIES if name != "unbounded"]
