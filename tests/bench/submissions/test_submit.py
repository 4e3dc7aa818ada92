"""`bench submit`: one folder that holds everything, and nothing that runs by being read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from stand_ins import plugin, run_bench
from submitting import submit, tree, write_plugin

from bench.submissions.manifest import take_in


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("submit")
    write_plugin(folder)
    ended = submit(folder, folder / "bundle")
    assert ended.code == 0, ended
    assert "mine.Mine on tiny, worst case" in ended.out
    return folder


def test_the_manifest_names_every_file(made: Path) -> None:
    bundle = made / "bundle"
    manifest = json.loads((bundle / "manifest.json").read_text())
    files = tree(bundle)
    named = {entry["path"]: entry for entry in manifest["files"]}
    assert named.keys() == files.keys() - {"manifest.json"}
    for path, entry in named.items():
        assert entry["size"] == len(files[path])
        assert entry["sha256"] == hashlib.sha256(files[path]).hexdigest()
    assert {Path(path).suffix for path in files} == {".json", ".py", ".safetensors"}
    assert {"code/mine.py", "code/shapes.py", "code/means.safetensors", "rows/step/000.safetensors"} <= files.keys()
    assert manifest["reference"] == "code/mine.py:Mine" and manifest["by"] == "A. Stranger"


def test_environment_claim_card_and_checks_are_in_it(made: Path) -> None:
    bundle = made / "bundle"
    environment = json.loads((bundle / "environment.json").read_text())
    assert any(line.startswith("torch==") for line in environment["packages"]) and environment["hardware"]["cpu"]
    claim = json.loads((bundle / "claim.json").read_text())
    assert 0 < claim["standard"] <= 1 and claim["worst_case"] < claim["standard"]
    assert claim["attacks"]["sunday"] is None and claim["attacks"]["step"] == claim["worst_case"]
    assert json.loads((bundle / "card.json").read_text())["title"] == "Mine"
    checks = json.loads((bundle / "checks.json").read_text())
    assert {entry["verdict"] for entry in checks["contract"]} <= {"pass", "warn"}
    assert {entry["what"] for entry in checks["verified"]} == {"clean", "step", "half", "large"}


def test_no_folder_of_this_machine_is_named(made: Path) -> None:
    for name, content in tree(made / "bundle").items():
        assert str(made).encode() not in content, name


def test_what_is_evaluated_is_used_and_nothing_is_overwritten(made: Path) -> None:
    again = submit(made, made / "second")
    assert again.code == 0 and not again.ran
    assert tree(made / "second").keys() == tree(made / "bundle").keys()
    before = tree(made / "second")
    third = submit(made, made / "second")
    assert third.code == 2 and "exists already" in third.err
    assert tree(made / "second") == before


def test_it_can_be_taken_in(made: Path, tmp_path: Path) -> None:
    manifest = take_in(made / "bundle", tmp_path / "in")
    assert manifest.defense == "mine.Mine"
    assert tree(tmp_path / "in") == tree(made / "bundle")


def test_code_that_does_not_stand_alone_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "plugin"
    write_plugin(folder)
    ended = run_bench(
        *("submit", "--defense", f"{folder / 'mine.py'}:Mine", "--suite", "tiny", "--quiet", "--device", "cpu"),
        *("--config", _config(folder), "--results", folder / "runs", "--by", "me", "--out", tmp_path / "bundle"),
    )
    assert ended.code == 2 and "means.safetensors" in ended.err and "--with" in ended.err
    assert len(ended.err.splitlines()) == 1
    assert not (tmp_path / "bundle").exists() and [p.name for p in tmp_path.iterdir()] == ["plugin"]


def _config(folder: Path) -> Path:
    from stand_ins import write_config

    return write_config(folder / "bench.yaml", {"step": {"attack": plugin("one_step")}})


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--by", ""], "--by"),
        (["--with", "/etc/hostname"], "--with /etc/hostname"),
        (["--set", "sigma=3"], "no parameter 'sigma'"),
    ],
)
def test_what_is_wrong_is_one_line_and_writes_nothing(tmp_path: Path, words: list[str], complaint: str) -> None:
    folder = tmp_path / "plugin"
    write_plugin(folder)
    ended = submit(folder, tmp_path / "bundle", *words)
    assert ended.code == 2 and complaint in ended.err, ended
    assert [p.name for p in tmp_path.iterdir()] == ["plugin"]


def test_a_failed_attack_is_no_submission(tmp_path: Path) -> None:
    folder = tmp_path / "plugin"
    write_plugin(folder)
    import submitting

    config = submitting.write_config(folder / "bench.yaml", {"failing": {"attack": plugin("failing")}})
    ended = run_bench(
        *("submit", "--defense", f"{folder / 'mine.py'}:Mine", "--suite", "tiny", "--quiet", "--device", "cpu"),
        *("--config", config, "--results", folder / "runs", "--by", "me", "--out", tmp_path / "bundle"),
        *("--with", folder / "means.safetensors"),
    )
    assert ended.code == 2 and "failing" in ended.err and not (tmp_path / "bundle").exists()


def test_compacted_results_are_no_evidence(tmp_path: Path) -> None:
    folder = tmp_path / "plugin"
    write_plugin(folder)
    assert submit(folder, tmp_path / "first").code == 0
    assert run_bench("compact", "--suite", "tiny", "--results", folder / "runs").code == 0
    ended = submit(folder, tmp_path / "second")
    assert ended.code == 2 and "compacted" in ended.err and not (tmp_path / "second").exists()
