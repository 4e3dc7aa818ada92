"""What people type in a hurry ends in one line that says what to do, and never in a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command_line
import numpy as np
import pytest
import yaml
from PIL import Image
from stand_ins import Ended, plugin, run_bench, write_config

STEP = {"step": {"attack": plugin("one_step")}}
X = (np.arange(40 * 64) % 256).astype(np.uint8).reshape(40, 1, 8, 8)
Y = np.arange(40) % 10


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a suite, a file, an empty folder."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "bench.yaml", STEP)
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    return tmp_path


def evaluate(*more: object, defense: str = plugin("Means")) -> Ended:
    where = ["--suite", "tiny", "--device", "cpu", "--results", "results", "--quiet"]
    return run_bench("evaluate", "--defense", defense, *where, *more)


def assert_refused(ended: Ended, *fragments: str) -> None:
    command_line.assert_refused(ended, *fragments)
    assert not Path("results").exists()


# -- names and paths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("defense", "fragments"),
    [
        ("", ["'': expected a name (bench list), file.py:Name or module:attr"]),
        (":", ["':': expected a name"]),
        ("bench.yaml", ["bench.yaml: is no Python file"]),
        ("weights/model.pth", ["weights/model.pth: weights alone are no model", "file.py:Name"]),
        ("https://example.org/mine.py:Mine", ["https://example.org/mine.py:Mine: is an address", "download it"]),
        ("größe", ["defense 'größe' does not exist"]),
        ("folder", ["folder: the folder has no __init__.py; name a file in it"]),
        ("no/such.py:Mine", ["no/such.py: no such file"]),
        ("a\0b.py:Mine", ["no such file"]),
    ],
)
def test_a_defense_that_is_none(defense: str, fragments: list[str]) -> None:
    assert_refused(evaluate(defense=defense), *fragments)


@pytest.mark.parametrize(
    "command",
    [
        ["report", "--results", "file"],
        ["status", "--results", "file"],
        ["verify", "--results", "file"],
        ["compact", "--results", "file"],
        ["leaderboard", "--results", "file", "--out", "site"],
    ],
    ids=" ".join,
)
def test_a_file_where_results_are_expected(command: list[str]) -> None:
    assert_refused(run_bench(*command), "results file: is a file, expected a folder of results")


@pytest.mark.parametrize(
    ("command", "fragments"),
    [
        (["list", "suites", "--config", "folder"], ["folder: Is a directory"]),
        (["train", "--defense", plugin("Trained"), "--suite", "tiny", "--checkpoints", "file", "--quiet"],
         ["checkpoints folder file/stand_ins.Trained: file is not a folder"]),
        (["accept", "folder", "--results", "results"], ["bundle manifest.json: cannot be read (No such file"]),
        (["accept", "https://example.org/bundle.zip", "--results", "results"], ["is not a folder"]),
        (["new", "defense", "mine", "--out", "file"], ["file/mine: cannot be written: Not a directory"]),
        (["new", "defence", "mine"], ["No such command 'defence'", "'defense'"]),
        (["study", "losses", "--suite", "tiny", "--step", "nan", "--quiet"], ["step nan must be above 0"]),
        (["submit-attack", "--suite", "tiny", "--defense", "none", "--images", "folder", "--by", "ME", "--out", "out"],
         ["--images folder: holds no PNG files"]),
    ],
    ids=lambda value: value[0],
)  # fmt: skip
def test_other_commands(command: list[str], fragments: list[str]) -> None:
    assert_refused(run_bench(*command), *fragments)


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--gpus-per-job", "nan"], ["GPUs of a job", "nan"]),
        (["--eps", "0,03"], ["eps: '0,03' must be a valid number"]),
        (["--eps", ""], ["eps: '' must be a valid number"]),
        (["--examples", "-3"], ["--examples", "-3"]),
        (["--checkpoints", "file", "--set", "scale="], ["parameter scale", "''"]),
        (["--set", "scäle=1"], ["no parameter 'scäle'", "did you mean 'scale'?"]),
        (["--results", "file/results"], ["results folder file/results: file is not a folder"]),
    ],
)
def test_options(options: list[str], fragments: list[str]) -> None:
    assert_refused(evaluate(*options), *fragments)


def test_a_file_that_the_system_refuses_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    for part in ("train", "test"):
        (Path("pictures") / part).mkdir(parents=True)
    assert_refused(evaluate("--data", "folder:pictures"), "pictures/train: Permission denied")


# -- bench.yaml -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (b"", ["wrong.yaml: is empty"]),
        (b"suites:\n\ttiny:\n\t\tdata: digits\n", ["indented by spaces, not by tabs", "line 2"]),
        ("suites: {tiny: {description: café}}".encode("latin-1"), ["wrong.yaml: is not UTF-8 text"]),
        ("suites: {}".encode("utf-16"), ["wrong.yaml: is not UTF-8 text"]),
        (b"suites: [tiny]", ["suites: ['tiny'] must be a mapping"]),
        (b"suites: {tiny: }", ["suites.tiny: is empty"]),
        (b"tiny: {data: digits}", ["suites: is required"]),
        (b"suites: &a {tiny: *a}", ["suites.tiny"]),
    ],
)
def test_a_file_that_is_no_configuration(content: bytes, fragments: list[str]) -> None:
    Path("wrong.yaml").write_bytes(content)
    assert_refused(evaluate("--config", "wrong.yaml"), *fragments)


@pytest.mark.parametrize(
    ("fields", "fragments"),
    [
        ({"threat_model": {"norm": "linf", "eps": "0,03"}}, ["threat_model.eps: '0,03' must be a valid number"]),
        ({"threat_model": {"norm": "linf", "eps": True}}, ["threat_model.eps: True must be a number"]),
        ({"threat_model": {"norm": "linf", "eps": [0.1, 0.2]}}, ["threat_model.eps: [0.1, 0.2] must be"]),
        ({"threat_model": {"norm": "Linf", "eps": 0.1}}, ["threat_model.norm: 'Linf' must be 'linf'"]),
        ({"examples": True}, ["suites.tiny.examples: True must be a valid integer"]),
        ({"seed": False}, ["suites.tiny.seed: False must be a valid integer"]),
        ({"attacks": ["pgd", "noise"]}, ["suites.tiny.attacks: ['pgd', 'noise'] must be a mapping"]),
        ({"attacks": "pgd"}, ["suites.tiny.attacks: 'pgd' must be a mapping"]),
    ],
)
def test_a_field_of_another_kind(fields: dict[str, Any], fragments: list[str]) -> None:
    suite = {"data": "digits", "threat_model": {"norm": "linf", "eps": 0.1}, "attacks": STEP, **fields}
    Path("wrong.yaml").write_text(yaml.safe_dump({"suites": {"tiny": suite}}))
    assert_refused(evaluate("--config", "wrong.yaml"), *fragments)


# -- data -------------------------------------------------------------------------------------------------------


def spoiled() -> np.ndarray[Any, Any]:
    x = X / 255
    x[3, 0, 0, 0] = np.nan
    return x


@pytest.mark.parametrize(
    ("arrays", "fragments"),
    [
        ({"x": X, "y": Y + 3, "num_classes": 10}, ["has the label 12, but num_classes is 10"]),
        ({"x": X, "y": Y, "num_classes": 1}, ["num_classes must be one whole number, at least 2"]),
        ({"x": X, "y": Y - 1}, ["y: has the label -1"]),
        ({"x": X, "y": np.eye(10)[Y]}, ["y: is float64 (40, 10), expected whole numbers (N,)"]),
        ({"x": X, "y": Y[1:]}, ["x has 40 examples, y has 39"]),
        ({"x": spoiled(), "y": Y}, ["x: spans [nan, nan]"]),
        ({"x": X.astype(np.float32), "y": Y}, ["expected floats in [0, 1] (or uint8)"]),
        ({"x": X[:0], "y": Y[:0]}, ["x has no examples"]),
    ],
)
def test_arrays_that_are_no_data(arrays: dict[str, Any], fragments: list[str]) -> None:
    np.savez("mine.npz", **arrays)
    assert_refused(evaluate("--data", "file:mine.npz"), "mine.npz", *fragments)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["mine.npz", "mine.pt"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04}."])
def test_a_file_of_another_kind_is_not_to_be_loaded_unsafely(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    ended = evaluate("--data", f"file:{name}")
    assert_refused(ended, f"{name}: cannot be read: ")
    assert "allow_pickle" not in ended.err and "weights_only" not in ended.err


def write_pictures(classes: int = 2, spoil: Callable[[Path], object] | None = None) -> None:
    for path in (Path("pictures") / part / f"c{c}" / "0.png" for part in ("train", "test") for c in range(classes)):
        path.parent.mkdir(parents=True)
        Image.fromarray(X[0, 0]).save(path)
    if spoil is not None:
        spoil(Path("pictures/test/c0/0.png"))


@pytest.mark.parametrize(
    ("write", "data", "fragments"),
    [
        (write_pictures, "folder:nowhere", ["nowhere: there is no such folder"]),
        (write_pictures, "folder:file", ["file: is a file"]),
        (write_pictures, "folder:https://example.org/pictures", ["there is no such folder"]),
        (write_pictures, "pictures", ["did you mean 'folder:pictures'?"]),
        (write_pictures, "file:pictures", ["ends with none of .npz, .pt, .safetensors"]),
        (lambda: write_pictures(1), "folder:pictures", ["has 1 classes below 'train', needs 2"]),
        (lambda: write_pictures(spoil=lambda p: p.write_bytes(b"no PNG")), "folder:pictures", ["c0/0.png: cannot be"]),
        (lambda: write_pictures(spoil=lambda p: p.write_bytes(b"")), "folder:pictures", ["c0/0.png: cannot be read"]),
    ],
)
def test_pictures_that_are_no_data(write: Callable[[], None], data: str, fragments: list[str]) -> None:
    write()
    assert_refused(evaluate("--data", data), *fragments)


# -- around the command: the reader, the terminal, the folder, the disk -----------------------------------------

RUN = [sys.executable, "-c", "from bench.cli.main import main; main()"]


def bench(*words: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; ``shell`` follows it on a line of bash."""
    line = f'"$@" {shell}' if shell else 'exec "$@"'
    command = ["bash", "-o", "pipefail", "-c", line, "bash", *RUN, *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def test_a_reader_that_has_gone_is_no_error() -> None:
    ended = bench("list", shell="| head -1")
    assert ended.returncode == 0 and ended.stderr == "" and len(ended.stdout.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["--help"]], ids=" ".join)
def test_a_disk_that_is_full_is_one_line(words: list[str]) -> None:
    ended = bench(*words, shell="> /dev/full")
    assert ended.returncode == 2 and ended.stderr == "error: No space left on device\n"


def test_a_terminal_that_knows_ascii_alone_gets_question_marks() -> None:
    ended = bench("list", "attacks", PYTHONIOENCODING="ascii")
    assert ended.returncode == 0 and ended.stderr == "" and "?" in ended.stdout and "pgd" in ended.stdout
    assert json.loads(bench("list", "attacks", "--json", PYTHONIOENCODING="ascii").stdout)


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"COLUMNS": "8"}, {"HOME": "/nowhere", "LC_ALL": "C"}])
def test_any_terminal_will_do(environment: dict[str, str]) -> None:
    assert bench("list", **environment).stdout == bench("list").stdout != ""


def test_a_current_folder_that_has_gone(folder: Path) -> None:
    (folder / "gone").mkdir()
    command = ["bash", "-c", 'cd gone && rmdir ../gone && exec "$@"', "bash", *RUN, "list"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and ended.stderr == "error: the current folder: No such file or directory\n"
