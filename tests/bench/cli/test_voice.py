"""``--json`` and ``--quiet`` mean the same on every command: one document alone; no progress and no notes."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from safetensors.torch import save_file
from stand_ins import Ended, plugin, run_bench, write_config
from submitting import write_plugin

from bench.cli.main import main
from bench.cli.voice import plain
from bench.data.load import load_data
from bench.studies.losses.measure import Budget

STEP = {"step": {"attack": plugin("one_step"), "fraction": 0.3}}
SMALL = partial(
    Budget, train_examples=60, test_examples=30, adaptive_examples=4, adaptive_iterations=2, networks=("cnn-a",),
    circle_epochs=20,
)  # fmt: skip

#: What each command is given, by a folder to work in; ``NEW`` is a name that no run has had.
COMMANDS: dict[str, str] = {
    "list": "",
    "check": "MEANS SUITE",
    "train": "--defense TRAINED SUITE --checkpoints NEW",
    "evaluate": "--defense MEANS SUITE --results NEW",
    "report": "STORED",
    "status": "STORED --config CONFIG",
    "verify": "--suite tiny STORED",
    "certify": "--defense MEANS SUITE STORED --smoothing 0.25 --draws 50",
    "gradients": "--defense MEANS SUITE STORED",
    "study losses": "--defense MEANS SUITE STORED --images 4 --iterations 2 --epochs 1",
    "study transformation": "--defense ours SUITE STORED",
    "compact": "STORED",
    "leaderboard": "STORED --out NEW",
    "new defense": "NAME --out NEW",
    "new attack": "NAME --out NEW",
    "submit": "--defense MINE SUITE --results NEW-runs --by ME --out NEW",
    "submit-attack": "--suite tiny --config CONFIG --defense STORED-NAME --images POINTS --by ME --out NEW",
    "accept": "BUNDLE --results NEW --config CONFIG --again 1",
}
_numbers = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration, results, points and a bundle, all of them small."""
    folder = tmp_path_factory.mktemp("voice")
    config = write_config(folder / "bench.yaml", STEP)
    where = ["--suite", "tiny", "--config", config, "--device", "cpu", "--quiet"]
    assert run_bench("evaluate", "--defense", plugin("Means"), *where, "--results", folder / "results").code == 0
    mine = f"{write_plugin(folder)}:Mine"
    more = ["--with", folder / "means.safetensors", "--by", "ME", "--out", folder / "bundle"]
    assert run_bench("submit", "--defense", mine, *where, *more, "--results", folder / "runs").code == 0
    x = load_data("digits").test.take(12).x
    save_file({"x_adv": (x + 0.2 * torch.where(x > 0.5, -1.0, 1.0)).clamp(0, 1)}, folder / "points.safetensors")
    return folder


def words(command: str, folder: Path) -> list[str]:
    new = folder / f"new-{next(_numbers)}"
    results = folder / f"results-{new.name}"
    shutil.copytree(folder / "results", results)
    meant = {
        "MEANS": [plugin("Means")],
        "TRAINED": [plugin("Trained")],
        "MINE": [f"{folder / 'mine.py'}:Mine", "--with", str(folder / "means.safetensors")],
        "SUITE": ["--suite", "tiny", "--config", str(folder / "bench.yaml"), "--device", "cpu"],
        "STORED": ["--results", str(results)],
        "STORED-NAME": ["stand_ins.Means"],
        "CONFIG": [str(folder / "bench.yaml")],
        "POINTS": [str(folder / "points.safetensors")],
        "BUNDLE": [str(folder / "bundle")],
        "NEW": [str(new)],
        "NEW-runs": [f"{new}-runs"],
        "NAME": ["of-mine"],
    }
    given = [part for word in COMMANDS[command].split() for part in meant.get(word, [word])]
    return [*command.split(), *given]


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield " ".join((*path, name))


def run(command: str, folder: Path, *options: str) -> Ended:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.studies.losses.measure.Budget", SMALL)
        ended = run_bench(*words(command, folder), *options)
    assert ended.code == 0, ended
    return ended


def test_every_command_is_walked_over() -> None:
    assert set(leaves(main)) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_one_document_on_standard_output(folder: Path, command: str) -> None:
    document = json.loads(run(command, folder, "--json").out, parse_constant=pytest.fail)
    assert isinstance(document, dict) and document


@pytest.mark.parametrize("command", COMMANDS)
def test_quiet_leaves_the_result_alone_on_standard_output(folder: Path, command: str) -> None:
    ended = run(command, folder, "--quiet")
    assert ended.err == "" and ended.out.strip()
    both = run(command, folder, "--json", "--quiet")
    assert both.err == "" and json.loads(both.out)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_goes_wrong_is_said_however_quiet(folder: Path, command: str) -> None:
    ended = run_bench(*command.split(), "--json", "--quiet", "--no-such-option")
    assert ended.code == 2 and ended.out == "" and "--no-such-option" in ended.err


@pytest.mark.parametrize("command", ["train", "evaluate", "certify", "gradients", "study losses", "submit"])
def test_without_quiet_the_work_shows_how_far_it_is(folder: Path, command: str) -> None:
    assert "elapsed" in run(command, folder).err


def test_json_names_what_text_names(folder: Path) -> None:
    checked = json.loads(run("check", folder, "--json").out)
    assert checked["broken"] == 0 and {rule["verdict"] for rule in checked["rules"]} == {"pass"}
    verified = json.loads(run("verify", folder, "--json").out)
    assert verified["confirmed"] and {cell["attack"] for cell in verified["cells"]} == {"clean", "step"}
    assert all(cell["rows"] == 12 and cell["different"] == 0 for cell in verified["cells"])
    (suite,) = json.loads(run("status", folder, "--json").out)["suites"]
    assert suite["examples"] == 12 and suite["shards_to_run"] == 0
    assert [defense["name"] for defense in suite["defenses"]] == ["stand_ins.Means"]
    (trained,) = json.loads(run("train", folder, "--json").out)["defenses"]
    assert trained["status"] == "trained" and Path(trained["checkpoint"]).is_file()
    site = json.loads(run("leaderboard", folder, "--json").out)
    assert Path(site["index"]).is_file() and site["suites"] == ["tiny"]


def test_a_dry_run_is_json_too(folder: Path) -> None:
    plan = json.loads(run("evaluate", folder, "--json", "--dry-run").out)
    assert plan["expected_seconds"] is None and plan["expected_between"] is None and plan["jobs"] == 8
    assert [(cell["attack"], cell["shards"], cell["shards_to_run"]) for cell in plan["cells"]] == [
        ("clean", 3, 3),
        ("step", 3, 3),
    ]


def test_a_broken_rule_is_in_the_document_and_the_code_says_so(folder: Path) -> None:
    where = ["--suite", "tiny", "--config", folder / "bench.yaml", "--device", "cpu"]
    ended = run_bench("check", plugin("wrong_shape"), *where, "--json", "--quiet")
    assert ended.code == 2 and ended.err == "" and json.loads(ended.out)["broken"] == 1


def test_a_failed_attack_is_in_the_document_and_said(tmp_path: Path) -> None:
    config = write_config(tmp_path / "bench.yaml", {"failing": {"attack": plugin("failing")}})
    where = ["--suite", "tiny", "--config", config, "--results", tmp_path / "results", "--device", "cpu"]
    ended = run_bench("evaluate", "--defense", plugin("Means"), *where, "--json", "--quiet")
    failed = json.loads(ended.out)["failed"]
    assert ended.code == 1 and len(failed) == 1 and "no adversarial example today" in failed[0]
    assert [line.removeprefix("failed: ") for line in ended.err.splitlines()] == failed


CHATTY = """
import os, sys
from torch import nn
print("imported")
class Chatty(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        nn.init.constant_(self.layer.weight, 0.1)
        nn.init.zeros_(self.layer.bias)
    def forward(self, x):
        print("forward")
        os.write(1, b"from C")
        return self.layer(x.flatten(1))
def model():
    return Chatty().eval()
"""


def test_a_plugin_that_prints_does_not_spoil_the_document(tmp_path: Path) -> None:
    (tmp_path / "chatty.py").write_text(CHATTY)
    write_config(tmp_path / "bench.yaml", STEP)
    line = "from bench.cli.main import main; main()"
    where = ["--suite", "tiny", "--workers", "1", "--device", "cpu"]
    command = [sys.executable, "-c", line, "evaluate", "--defense", "chatty.py:model", *where, "--json"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["suites"][0]["name"] == "tiny"
    assert all(said in ended.stderr for said in ("imported", "forward", "from C"))


def test_json_and_another_format_contradict_each_other(folder: Path) -> None:
    ended = run_bench(*words("report", folder), "--json", "--format", "csv")
    assert ended.code == 2 and "--format csv: --json asks for JSON" in ended.err and ended.out == ""
    assert json.loads(run("report", folder, "--json").out) == json.loads(run("report", folder, "--format", "json").out)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": math.nan, "b": [math.inf, 1.5]}, {"a": None, "b": [None, 1.5]}),
        ((Path("x/y"), {1: True}), ["x/y", {"1": True}]),
    ],
)
def test_results_are_plain_json(value: Any, expected: Any) -> None:
    assert plain(value) == expected
