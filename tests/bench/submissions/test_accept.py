"""`bench accept`: an honest bundle becomes results; an altered one is refused in one line, with nothing written."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from stand_ins import Ended, plugin, run_bench, write_config
from submitting import ATTACKS, remade, submit, tree, write_plugin

from bench.storing.store import Store
from bench.submissions.contents import LIMITS
from bench.summary.summarise import summarise


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration and two bundles: of a deterministic defense, and of a randomised one."""
    folder = tmp_path_factory.mktemp("accept")
    write_plugin(folder)
    for name in ("Mine", "Dithered"):
        ended = submit(folder, folder / name, name=name)
        assert ended.code == 0, ended
    return folder


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "Mine", tmp_path / "bundle"))


def accept(bundle: Path, results: Path, config: Path, *more: object) -> Ended:
    words = ["--config", config, "--device", "cpu", "--quiet"]
    return run_bench("accept", bundle, "--results", results, *words, *more)


@pytest.mark.parametrize("name", ["Mine", "Dithered"])
def test_an_honest_bundle_becomes_results(made: Path, tmp_path: Path, name: str) -> None:
    results = tmp_path / "results"
    before = tree(made / name)
    ended = accept(made / name, results, made / "bench.yaml")
    assert ended.code == 0, ended
    assert "accepted: " in ended.out and "rows judged again" in ended.out and "A. Stranger" in ended.out
    assert tree(made / name) == before
    assert sorted(path.name for path in results.iterdir()) == ["tiny"]
    (found,) = summarise(results, "tiny").defenses
    mine = next(d for d in summarise(made / "runs", "tiny").defenses if d.record.name == f"mine.{name}")
    assert found.complete and found.standard == mine.standard
    assert found.worst_case.value <= mine.worst_case.value + 1e-9
    assert found.record.title == "Mine" and found.record.reference == f"code/mine.py:{name}"
    acceptance = json.loads((results / "tiny" / f"mine.{name}" / "@submission" / "acceptance.json").read_text())
    assert acceptance["by"] == "A. Stranger" and len(acceptance["again"]) == 2
    assert acceptance["worst_case"] == mine.worst_case.value


def test_what_was_accepted_is_verified_and_shown_without_the_bundle(bundle: Path, made: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert accept(bundle, results, made / "bench.yaml").code == 0
    shutil.rmtree(bundle)
    ended = run_bench("verify", "--suite", "tiny", "--results", results, "--device", "cpu")
    assert ended.code == 0 and "0 of 12 rows differ" in ended.out, ended
    assert run_bench("report", "--results", results).code == 0
    assert run_bench("leaderboard", "--results", results, "--out", tmp_path / "site").code == 0


def test_a_defense_beside_others_is_added_in_one_step(bundle: Path, made: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert accept(made / "Dithered", results, made / "bench.yaml").code == 0
    before = tree(results)
    assert accept(bundle, results, made / "bench.yaml").code == 0
    after = tree(results)
    assert {name: after[name] for name in before} == before
    again = accept(bundle, results, made / "bench.yaml")
    assert again.code == 2 and "already" in again.err and tree(results) == after


# -- altered bundles --------------------------------------------------------------------------------------------


def shard(bundle: Path, attack: str = "step") -> Path:
    return bundle / "rows" / attack / "000.json"


def edit(path: Path, change: Callable[[Any], object]) -> None:
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def a_row(bundle: Path) -> None:
    def survive(raw: dict[str, Any]) -> None:
        for name in ("select_robust", "report_robust", "report_correct", "select_correct"):
            raw["rows"][0][raw["columns"].index(name)] ^= 1

    edit(shard(bundle), survive)


def an_image(bundle: Path) -> None:
    path = bundle / "rows" / "step" / "000.safetensors"
    with safe_open(path, "pt") as file:
        header = file.metadata()
    held = load_file(path)
    save_file(held | {"steps": torch.flip(held["steps"], (3,)).contiguous()}, path, header)


def the_weights(bundle: Path) -> None:
    path = bundle / "code" / "means.safetensors"
    save_file({"means": load_file(path)["means"] * 1.01}, path)


def the_code(bundle: Path) -> None:
    path = bundle / "code" / "mine.py"
    path.write_text(path.read_text().replace("20 * means", "21 * means"))


def another_suite(bundle: Path) -> None:
    edit(bundle / "suite.json", lambda raw: raw["attacks"][0]["params"].update(fraction=0.25))


ALTERED = {
    "a row": a_row,
    "an image": an_image,
    "the weights": the_weights,
    "the code": the_code,
    "another suite": another_suite,
}


def refused(bundle: Path, made: Path, tmp_path: Path, complaint: str = "", config: Path | None = None) -> None:
    """One line, nothing written, neither where there are no results nor beside others."""
    ended = accept(bundle, tmp_path / "results", config or made / "bench.yaml")
    assert ended.code == 2, ended
    assert len(ended.err.splitlines()) == 1 and complaint in ended.err and ended.err.startswith("error: "), ended.err
    assert not (tmp_path / "results").exists()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".accepting")]


@pytest.mark.parametrize("what", ALTERED)
def test_a_changed_file_is_found_by_its_hash(bundle: Path, made: Path, tmp_path: Path, what: str) -> None:
    ALTERED[what](bundle)
    refused(bundle, made, tmp_path, "the manifest says")


@pytest.mark.parametrize("what", ALTERED)
def test_a_changed_file_is_found_although_the_manifest_was_made_anew(
    bundle: Path, made: Path, tmp_path: Path, what: str
) -> None:
    ALTERED[what](bundle)
    remade(bundle)
    said = {
        "a row": "1 of 12 rows differ",
        "an image": "SHA-256",
        "the weights": "weights",
        "the code": "version",
        "another suite": "suite_key",
    }
    refused(bundle, made, tmp_path, said[what])


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a defense that was trained."""
    folder = tmp_path_factory.mktemp("learnt")
    config = write_config(folder / "bench.yaml", ATTACKS)
    where = ["--defense", f"{write_plugin(folder)}:Learnt", "--suite", "tiny", "--config", config, "--device", "cpu"]
    assert run_bench("train", *where).code == 0
    assert submit(folder, folder / "bundle", name="Learnt").code == 0
    return folder


def test_weights_that_were_trained_come_with_it(learnt: Path, tmp_path: Path) -> None:
    shutil.copytree(learnt / "bundle", tmp_path / "bundle")
    shutil.rmtree(learnt / "checkpoints")  # not those of the submitter are read
    assert accept(tmp_path / "bundle", tmp_path / "results", learnt / "bench.yaml").code == 0
    shutil.rmtree(tmp_path / "bundle")
    ended = run_bench("verify", "--suite", "tiny", "--results", tmp_path / "results", "--device", "cpu")
    assert ended.code == 0 and "mine.Learnt × step: 0 of 12 rows differ" in ended.out


@pytest.mark.parametrize("deep", [0, 1, 2])
def test_other_weights_are_found_however_deep_they_are_changed(learnt: Path, tmp_path: Path, deep: int) -> None:
    """In the file alone; with the manifest; with the record of the training that holds their SHA-256 as well."""
    import hashlib

    bundle = Path(shutil.copytree(learnt / "bundle", tmp_path / "bundle"))
    (path,) = (bundle / "weights" / "mine.Learnt").glob("*.safetensors")
    save_file({name: 1.01 * value for name, value in load_file(path).items()}, path)
    if deep > 1:
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        edit(path.with_suffix(".json"), lambda raw: raw.update(sha256=sha))
    if deep:
        remade(bundle)
    refused(bundle, learnt, tmp_path, ["the manifest says", "its record says", "weights"][deep])


def test_an_image_whose_record_was_changed_with_it_is_judged(bundle: Path, made: Path, tmp_path: Path) -> None:
    import hashlib

    an_image(bundle)
    data = (bundle / "rows" / "step" / "000.safetensors").read_bytes()
    edit(shard(bundle), lambda raw: raw.update(x_adv_sha256=hashlib.sha256(data).hexdigest()))
    remade(bundle)
    refused(bundle, made, tmp_path, "rows differ")


def test_another_suites_key_is_found(bundle: Path, made: Path, tmp_path: Path) -> None:
    other = write_config(tmp_path / "other.yaml", {**ATTACKS, "half": {"attack": plugin("one_step"), "fraction": 0.4}})
    refused(bundle, made, tmp_path, "another suite than 'tiny' is here: attack half", other)
    remade(bundle, suite="digits")
    refused(bundle, made, tmp_path, "another suite than 'digits'")
    remade(bundle, suite="nowhere")
    refused(bundle, made, tmp_path, "suite 'nowhere' does not exist")


def test_a_changed_manifest_is_found(bundle: Path, made: Path, tmp_path: Path) -> None:
    edit(bundle / "manifest.json", lambda raw: raw["files"].pop())
    refused(bundle, made, tmp_path, "does not name")
    remade(bundle, extra_field=1)
    refused(bundle, made, tmp_path, "extra_field")
    (bundle / "manifest.json").write_text("{")
    refused(bundle, made, tmp_path, "is not JSON")


OUTSIDE = ["../x.py", "/etc/passwd.py", "code/../../x.py", "code\\x.py", "code//x.py", "code/\0.py"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_path_out_of_the_folder_is_refused(bundle: Path, made: Path, tmp_path: Path, path: str) -> None:
    entry = {"path": path, "size": 0, "sha256": "0" * 64}
    edit(bundle / "manifest.json", lambda raw: raw["files"].append(entry))
    refused(bundle, made, tmp_path, "no path inside the bundle")


@pytest.mark.parametrize("of", ["file", "folder"])
def test_a_symbolic_link_is_refused(bundle: Path, made: Path, tmp_path: Path, of: str) -> None:
    place = bundle / "code" / "shapes.py" if of == "file" else bundle / "code"
    moved = tmp_path / "elsewhere" / place.name
    moved.parent.mkdir()
    place.rename(moved)
    place.symlink_to(moved)
    refused(bundle, made, tmp_path, "symbolic link")


def test_something_that_is_no_file_is_refused(bundle: Path, made: Path, tmp_path: Path) -> None:
    import os

    os.mkfifo(bundle / "code" / "pipe.py")
    refused(bundle, made, tmp_path, "is no file")


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x_adv.npy", b"\0" * 50_000_000)


@pytest.mark.parametrize("name", ["rows/step/000.npz", "bomb.zip", "code/bomb.png", "rows/step/shards.json.xz"])
def test_a_decompression_bomb_is_not_even_opened(bundle: Path, made: Path, tmp_path: Path, name: str) -> None:
    _zip(bundle / name)
    remade(bundle)
    refused(bundle, made, tmp_path, "no pickles, archives or images")


def test_a_header_that_promises_more_than_the_file_has_is_refused(bundle: Path, made: Path, tmp_path: Path) -> None:
    path = bundle / "rows" / "step" / "000.safetensors"
    header = json.dumps({"x_adv": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 64)
    remade(bundle)
    refused(bundle, made, tmp_path, "no safetensors file")
    path.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    remade(bundle)
    refused(bundle, made, tmp_path, "longer than itself")


def test_a_file_too_large_is_not_read(bundle: Path, made: Path, tmp_path: Path) -> None:
    with (bundle / "claim.json").open("wb") as file:
        file.truncate(LIMITS[".json"] + 1)
    remade(bundle)
    refused(bundle, made, tmp_path, "of at most")


@pytest.mark.parametrize("name", ["weights/mine.Mine/digits.pt", "code/weights.pkl"])
def test_a_pickle_is_refused(bundle: Path, made: Path, tmp_path: Path, name: str) -> None:
    path = bundle / name
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, buffer)
    path.write_bytes(buffer.getvalue())
    remade(bundle)
    refused(bundle, made, tmp_path, "no pickles, archives or images")


@pytest.mark.parametrize("name", ["code/means.safetensors", "code/shapes.py", "claim.json"])
def test_a_pickle_under_another_name_is_refused(bundle: Path, made: Path, tmp_path: Path, name: str) -> None:
    (bundle / name).write_bytes(pickle.dumps({"a": list(range(100))}))
    remade(bundle)
    refused(bundle, made, tmp_path, f"bundle {name}: is no ")


def test_a_newer_schema_is_refused(bundle: Path, made: Path, tmp_path: Path) -> None:
    edit(bundle / "manifest.json", lambda raw: raw.update(schema_version=2))
    refused(bundle, made, tmp_path, "schema version 2 is newer than 1")


def test_a_newer_schema_of_a_row_is_refused(bundle: Path, made: Path, tmp_path: Path) -> None:
    edit(shard(bundle), lambda raw: raw.update(schema_version=99))
    remade(bundle)
    refused(bundle, made, tmp_path, "schema version 99 is newer")


# -- what no hash can show --------------------------------------------------------------------------------------


def test_an_attack_that_claims_not_to_apply_is_tried(bundle: Path, made: Path, tmp_path: Path) -> None:
    for path in (bundle / "rows" / "step").glob("*.json"):
        edit(path, lambda raw: raw.update(status="not-applicable", error="no", rows=[], columns=[], x_adv_sha256=""))
        path.with_suffix(".safetensors").unlink()
    remade(bundle)
    refused(bundle, made, tmp_path, "attack step: does apply")


def test_a_missing_cell_is_found(bundle: Path, made: Path, tmp_path: Path) -> None:
    shutil.rmtree(bundle / "rows" / "half")
    remade(bundle)
    refused(bundle, made, tmp_path, "lacks")


def test_a_file_among_the_rows_that_is_no_shard_is_refused(bundle: Path, made: Path, tmp_path: Path) -> None:
    (bundle / "rows" / "@found").mkdir()
    (bundle / "rows" / "@found" / "000.json").write_text("{}")
    remade(bundle)
    refused(bundle, made, tmp_path, "lies in a folder of its attack")


def test_weak_attacks_that_pretend_to_be_the_suites_are_found_with_another_seed(
    bundle: Path, made: Path, tmp_path: Path
) -> None:
    """Rows of honest judgements of points that hardly move: every hash is right, and so is every judgement."""
    config = write_config(tmp_path / "weak.yaml", {**ATTACKS, "step": {"attack": plugin("one_step"), "fraction": 0.01}})
    folder = tmp_path / "weak"
    write_plugin(folder)
    shutil.copyfile(config, folder / "bench.yaml")
    weak = {**ATTACKS, "step": {"attack": plugin("one_step"), "fraction": 0.0}, "half": ATTACKS["step"]}
    ended = submit(folder, tmp_path / "weak-bundle", attacks=weak, examples=60, shard_size=60)
    assert ended.code == 0, ended
    whole = {**ATTACKS, "half": ATTACKS["step"]}
    own = write_config(tmp_path / "own.yaml", whole, examples=60, shard_size=60)
    forged = tmp_path / "weak-bundle"
    edit(forged / "suite.json", lambda raw: raw["attacks"][0]["params"].update(fraction=1.0))
    for path in (forged / "rows" / "step").glob("*.json"):
        edit(path, lambda raw: raw["key"]["attack"]["params"].update(fraction=1.0))
    from bench.storing.records import SuiteRecord
    from bench.storing.store import read_record
    from bench.submissions.suite_key import suite_key

    remade(forged, suite_key=suite_key(read_record(forged / "suite.json", SuiteRecord), "code/mine.py:Mine"))
    ended = accept(forged, tmp_path / "results", own, "--again", "9")
    assert ended.code == 2 and "attack step with another seed leaves" in ended.err, ended
    assert not (tmp_path / "results").exists()


def test_results_of_another_state_of_the_suite_are_left_alone(bundle: Path, made: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert accept(made / "Dithered", results, made / "bench.yaml").code == 0
    path = Store(results, "tiny").folder / "suite.json"
    edit(path, lambda raw: raw["attacks"][0]["params"].update(fraction=0.25))
    before = tree(results)
    ended = accept(bundle, results, made / "bench.yaml")
    assert ended.code == 2 and "has changed since (attack step)" in ended.err
    assert tree(results) == before
