"""`bench certify` end to end on a small network, and every other command with certificates beside the rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from stand_ins import Ended, SerialEngine, plugin, run_bench, shards, write_config
from submitting import remade, submit, write_plugin

from bench.storing.certified import Certificates
from bench.storing.reading import read_record

NETWORK = '''
from torch import nn, no_grad

from bench import Defense
from bench.data.load import load_data


class Small(Defense):
    """The nearest class mean, of whose logits a layer of ReLU takes what is below -20."""

    trainable = False
    version = 1

    def __init__(self, data):
        super().__init__(data)
        train = load_data("digits").train
        means = [train.x[train.y == k].mean(0).flatten() for k in range(10)]
        first, last = nn.Linear(64, 10), nn.Linear(10, 10)
        with no_grad():
            for k, mean in enumerate(means):
                first.weight[k], first.bias[k] = 20 * mean, 20 - 10 * mean.square().sum() - 100
            last.weight.copy_(last.weight.new_ones(10).diag())
            last.bias.zero_()
        self.classifier = nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)
'''
WHAT = ("--suite", "tiny")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network, evaluated, and certified at two radii; ``certified.txt`` has what the command said."""
    folder = tmp_path_factory.mktemp("certified")
    (folder / "small.py").write_text(NETWORK)
    attack = {"attack": plugin("one_step")}
    write_config(folder / "bench.yaml", {"step": attack}, reference=f"{folder / 'small.py'}:Small")
    assert run("evaluate", folder, *_defense(folder), "--device", "cpu").code == 0
    ended = certify(folder)
    assert ended.code == 0, ended
    (folder / "certified.txt").write_text(ended.out)
    for path in folder.glob("results/tiny/*/defense.json"):  # stored without the folders of this machine
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"reference": f"{folder / 'small.py'}:Small"}))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of the results; the network stays where it was."""
    shutil.copytree(made / "results", tmp_path / "results")
    shutil.copy(made / "bench.yaml", tmp_path)
    shutil.copy(made / "small.py", tmp_path)
    return tmp_path


def _defense(folder: Path) -> tuple[str, str]:
    return "--defense", f"{folder / 'small.py'}:Small"


def run(command: str, folder: Path, *more: object, engine: SerialEngine | None = None) -> Ended:
    where = ["--config", folder / "bench.yaml", "--results", folder / "results"]
    return run_bench(command, *WHAT, *where, *more, engine=engine)


def certify(folder: Path, *more: object, engine: SerialEngine | None = None) -> Ended:
    radii = ["--eps", "0.02", "--eps", "0.2", "--examples", 6, "--time-limit", 5]
    return run("certify", folder, *_defense(folder), *radii, *more, engine=engine)


def stored(folder: Path, eps: str) -> Path:
    return folder / "results" / "tiny" / "small.Small" / "@certified" / f"linf-{eps}.json"


def after(command: str, folder: Path, *more: object) -> Ended:
    return run_bench(command, *WHAT, "--results", folder / "results", *more)


def claim(folder: Path) -> str:
    """Call an example certified that the stored attack breaks at 0.2; its id."""
    path = stored(folder, "0.2")
    fooled = {row.id for shard in shards(folder / "results").values() for row in shard.rows if not row.report_correct}
    raw = json.loads(path.read_text())
    at = {name: raw["columns"].index(name) for name in ("id", "status", "method", "bound")}
    row = next(row for row in raw["rows"] if row[at["id"]] in fooled)
    row[at["status"]], row[at["method"]], row[at["bound"]] = "certified", "relaxation", 1.0
    path.write_text(json.dumps(raw))
    return str(row[at["id"]])


def test_it_proves_at_a_small_radius_and_is_broken_at_a_large_one(made: Path) -> None:
    small, large = (read_record(stored(made, eps), Certificates) for eps in ("0.02", "0.2"))
    assert len(small.rows) == len(large.rows) == 6
    assert sum(row.status == "certified" for row in small.rows) >= 4
    assert sum(row.status == "broken" for row in large.rows) >= 4
    lines = (made / "certified.txt").read_text().splitlines()
    for line, eps, one in zip(lines, ("0.02", "0.2"), (small, large), strict=True):
        count = sum(row.status == "certified" for row in one.rows)
        assert line.startswith(f"small.Small, linf {eps}: of 6 examples {count} certified, ")


def test_a_second_time_nothing_is_run(made: Path) -> None:
    engine = SerialEngine()
    before = stored(made, "0.02").read_bytes()
    assert certify(made, engine=engine).out == (made / "certified.txt").read_text()
    assert engine.jobs == [] and stored(made, "0.02").read_bytes() == before


def test_fewer_examples_take_nothing_from_what_is_stored(folder: Path) -> None:
    before = stored(folder, "0.02").read_bytes()
    ended = certify(folder, "--examples", 2)
    assert ended.code == 0 and ended.out == certify(folder).out, ended
    assert stored(folder, "0.02").read_bytes() == before


def test_verify_confirms_certificates_and_ends_with_1_on_a_contradiction(folder: Path) -> None:
    ended = after("verify", folder, "--device", "cpu")
    assert ended.code == 0 and "small.Small × certificates" in ended.out, ended
    example = claim(folder)
    ended = after("verify", folder, "--device", "cpu")
    assert ended.code == 1 and f"{example} is certified at linf 0.2 and yet broken by a stored attack" in ended.out
    said = after("report", folder).out
    assert f"warning: small.Small: {example} is certified at linf 0.2 and yet broken" in said


def test_certify_itself_ends_with_1_on_a_contradiction(folder: Path) -> None:
    example = claim(folder)
    ended = certify(folder)
    assert ended.code == 1 and f"error: small.Small: {example} is certified at linf 0.2 and yet" in ended.err, ended


def test_report_and_site_show_the_interval(folder: Path, tmp_path: Path) -> None:
    (line,) = [line for line in after("report", folder).out.splitlines() if line.startswith("certified to attacked")]
    rows = [read_record(stored(folder, eps), Certificates).rows for eps in ("0.02", "0.2")]
    proven, less = (100 * sum(row.status == "certified" for row in some) / 6 for some in rows)
    assert line.startswith(f"certified to attacked, small.Small: linf 0.02: {proven:.1f} ")
    assert f" % of 6; linf 0.2: {less:.1f} " in line and line.endswith("% of 6")
    site = tmp_path / "site"
    assert run_bench("leaderboard", "--results", folder / "results", "--out", site).code == 0
    pages = [path.read_text(encoding="utf-8") for path in site.rglob("*.html")]
    assert any("Certified to attacked" in page and f'<span class="value">{proven:.1f} ' in page for page in pages)
    assert any(f"0.02: {proven:.1f} " in path.read_text(encoding="utf-8") for path in site.rglob("*.json"))


def test_compact_leaves_certificates_alone_and_status_knows_them(folder: Path) -> None:
    before = stored(folder, "0.02").read_bytes()
    assert run_bench("compact", "--results", folder / "results").code == 0
    assert stored(folder, "0.02").read_bytes() == before
    assert after("verify", folder, "--device", "cpu").code == 0
    said = run("status", folder, "--device", "cpu")
    assert said.code == 0 and "@certified" not in said.out
    (suite,) = json.loads(run("status", folder, "--device", "cpu", "--json").out)["suites"]
    assert [one["not_in_the_suite"] for one in suite["defenses"]] == [[]]


def test_a_certified_defense_can_be_submitted_and_accepted_but_certificates_are_not_believed(tmp_path: Path) -> None:
    write_plugin(tmp_path)
    attacks = {"step": {"attack": plugin("one_step")}}
    assert submit(tmp_path, tmp_path / "first", attacks=attacks).code == 0
    proven = ["certify", *WHAT, "--config", tmp_path / "bench.yaml", "--results", tmp_path / "runs"]
    mine = ["--defense", f"{tmp_path / 'mine.py'}:Mine", "--eps", "0.02", "--examples", 2]
    assert run_bench(*proven, *mine).code == 0
    (certificates,) = tmp_path.glob("runs/tiny/mine.Mine/@certified/linf-0.02.json")
    bundle = tmp_path / "second"
    assert submit(tmp_path, bundle, attacks=attacks).code == 0
    assert not list(bundle.rglob("@certified"))
    words = ["--config", tmp_path / "bench.yaml", "--device", "cpu", "--quiet"]
    assert run_bench("accept", bundle, "--results", tmp_path / "accepted", *words).code == 0
    smuggled = bundle / "rows" / "@certified" / certificates.name
    smuggled.parent.mkdir()
    shutil.copy(certificates, smuggled)
    remade(bundle)
    ended = run_bench("accept", bundle, "--results", tmp_path / "elsewhere", *words)
    assert ended.code == 2 and "@certified" in ended.err and not (tmp_path / "elsewhere").exists()
