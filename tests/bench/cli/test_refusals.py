"""The command line: one line for every wrong input, nothing written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import STEP, assert_refused, evaluate
from stand_ins import Ended, plugin, run_bench, write_config

from bench.contracts.defense import DefenseSpec
from bench.data.load import load_data
from bench.data.splits import Data, Split
from bench.plugins.resolve import build_defense
from bench.storing import checkpoints
from bench.suites.reading import load_config


def assert_nothing_written(folder: Path) -> None:
    assert not (folder / "results").exists()


# -- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--defense", "nonee"], ["defense 'nonee' does not exist", "did you mean 'none'?"]),
        (["--attack", "stepp"], ["suite tiny has no attack 'stepp'", "did you mean 'step'?"]),
        (["--suite", "tinny"], ["suite 'tinny' does not exist", "did you mean 'tiny'?"]),
        (["--data", "digit"], ["data 'digit' does not exist", "did you mean 'digits'?"]),
        (["--norm", "l3"], ["--norm", "l3", "l2"]),
        (["--norm", "l2"], ["norm l2: needs an eps"]),
        (["--eps", "wide"], ["eps: 'wide' must be a valid number"]),
        (["--eps", "-1/255"], ["eps: '-1/255'", "valid number"]),
        (["--eps", "0"], ["eps: '0' must be greater than 0"]),
        (["--set", "scal=2"], ["no parameter 'scal'", "did you mean 'scale'?"]),
        (["--set", "scale"], ["--set 'scale'", "expected name=value"]),
        (["--set", "scale=big"], ["parameter scale", "'big'"]),
        (["--workers", "0"], ["--workers", "0"]),
        (["--divice", "cpu"], ["--divice", "--device"]),
        (["--config", "missing.yaml"], ["missing.yaml", "No such file"]),
    ],
)
def test_an_unknown_name_or_option_is_refused(tmp_path: Path, options: list[str], fragments: list[str]) -> None:
    defense = "" if "--defense" in options else plugin("Means")
    assert_refused(evaluate(tmp_path, *options, defense=defense), *fragments)
    assert_nothing_written(tmp_path)


def test_no_defense_at_all_is_refused(tmp_path: Path) -> None:
    assert_refused(evaluate(tmp_path, defense=""), "no defense given")
    assert_nothing_written(tmp_path)


def test_cuda_without_a_device_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert_refused(evaluate(tmp_path, "--device", "cuda"), "--device cuda", "use auto or cpu")
    assert_nothing_written(tmp_path)


# -- bench.yaml -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "fragments"),
    [
        ({"threat_model": {"norm": "linf", "eps": 0}}, ["suites.tiny.threat_model.eps: 0 must be greater than 0"]),
        ({"threat_model": {"norm": "linf", "eps": -0.1}}, ["suites.tiny.threat_model.eps: -0.1"]),
        ({"threat_model": {"norm": "linf", "eps": "8/0"}}, ["suites.tiny.threat_model.eps: '8/0'"]),
        ({"threat_model": {"norm": "l3", "eps": 1}}, ["suites.tiny.threat_model.norm: 'l3'"]),
        ({"threat_model": {"norm": "linf"}}, ["suites.tiny.threat_model.eps: is required"]),
        ({"shard_size": 0}, ["suites.tiny.shard_size: 0"]),
        ({"example": 3}, ["suites.tiny.example: there is no such field", "did you mean 'examples'?"]),
        ({"draws": {"select": 5, "reports": 3}}, ["suites.tiny.draws.reports", "did you mean 'report'?"]),
        ({"attacks": {}}, ["suites.tiny.attacks"]),
        ({"attacks": {"clean": STEP["step"]}}, ["'clean' is the name of the unattacked input"]),
        ({"attacks": {"pgdd": {}}}, ["suites.tiny.attacks.pgdd", "did you mean 'pgd'?"]),
        ({"attacks": {"pgd": {"steps": 0}}}, ["suites.tiny.attacks.pgd.steps", "0"]),
        ({"attacks": {"pgd": {"stps": 3}}}, ["suites.tiny.attacks.pgd.stps", "did you mean 'steps'?"]),
        ({"attacks": {"pgd": {"eps": 0}}}, ["suites.tiny.attacks.pgd.eps: 0 must be greater than 0"]),
        ({"attacks": {"noise": {"knowledge": "gradient"}}}, ["suites.tiny.attacks.noise.knowledge: 'gradient'"]),
    ],
)
def test_a_wrong_field_is_named_with_its_path_and_value(
    tmp_path: Path, fields: dict[str, Any], fragments: list[str]
) -> None:
    config = write_config(tmp_path / "bench.yaml", **{"attacks": STEP, **fields})
    assert_refused(evaluate(tmp_path, config=config), "bench.yaml" if "attacks" not in fields else "", *fragments)
    assert_nothing_written(tmp_path)


@pytest.mark.parametrize("text", ["suites: [", "suites: {a: 1, a: 2}", "3", ""])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bench.yaml").write_text(text)
    assert_refused(evaluate(tmp_path, config=tmp_path / "bench.yaml"), "bench.yaml")
    assert_nothing_written(tmp_path)


# -- data -------------------------------------------------------------------------------------------------------


def _spoiled(part: str, x: float | None = None, y: int | None = None) -> Data:
    data = load_data("digits")
    split: Split = getattr(data, part)
    images, labels = split.x.clone(), split.y.clone()
    if x is not None:
        images[3, 0, 0, 0] = x
    if y is not None:
        labels[3] = y
    parts = {name: getattr(data, name) for name in ("train", "validation", "test")}
    return Data(data.info, data.class_names, **{**parts, part: Split(images, labels, split.ids)})


@pytest.mark.parametrize("part", ["test", "validation"])
@pytest.mark.parametrize(
    ("wrong", "fragments"),
    [
        ({"x": 1.5}, ["inputs of digits", "[0, 1.5], outside [0, 1]"]),
        ({"x": -0.25}, ["inputs of digits", "[-0.25, 1], outside [0, 1]"]),
        ({"x": float("nan")}, ["inputs of digits", "contain NaN or infinity"]),
        ({"y": 10}, ["labels of digits", "label 10 is outside 0..9"]),
        ({"y": -1}, ["labels of digits", "label -1 is outside 0..9"]),
    ],
)
def test_bad_images_and_labels_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, wrong: dict[str, Any], fragments: list[str]
) -> None:
    monkeypatch.setattr("bench.running.evaluate.load_data", lambda *_: _spoiled(part, **wrong))
    assert_refused(evaluate(tmp_path), *fragments)
    assert_nothing_written(tmp_path)


# -- defenses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("defense", "fragments"),
    [
        ("wrong_shape", ["forward", "expected logits of shape (32, 10), got (32, 11)"]),
        ("training_mode", ["is in training mode", ".eval()"]),
        ("Meanz", ["defines no 'Meanz'", "did you mean 'Means'?"]),
    ],
)
def test_a_defense_that_breaks_the_contract_is_refused(tmp_path: Path, defense: str, fragments: list[str]) -> None:
    assert_refused(evaluate(tmp_path, defense=plugin(defense)), *fragments)
    assert_nothing_written(tmp_path)


RAISING = """
from torch import nn
class Broken(nn.Module):
    def forward(self, x):
        return x.pixels
def f(): return Broken().eval()
""".strip()
LINEAR = "from torch import nn\ndef f(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval().{}\n"


@pytest.mark.parametrize(
    ("source", "fragments"),
    [
        ("def f(info):\n    return 3\n", ["returned int, expected a torch.nn.Module"]),
        ("raise RuntimeError('two\\nlines')\n", ["cannot be imported: RuntimeError: two lines"]),
        ("import no_such_package\n", ["cannot be imported: ModuleNotFoundError", "no_such_package"]),
        ("def f(info:\n", ["cannot be imported: SyntaxError", "(mine.py:1)"]),
        ("def f(info):\n    return 1 / 0\n", ["mine.py:f raised ZeroDivisionError: division by zero (mine.py:2)"]),
        (RAISING, ["model Broken raised AttributeError: 'Tensor' object has no attribute 'pixels' (mine.py:4)"]),
        (LINEAR.format("half()"), ["its weights are float16, inputs are float32: call .float() on the model"]),
        (LINEAR.format("bfloat16()"), ["its weights are bfloat16, inputs are float32"]),
        (f"import torch\n{LINEAR.format('eval()')}", ["is not what was probed: the defense's weights"]),
    ],
)
def test_a_plugin_that_gives_no_model_is_refused(tmp_path: Path, source: str, fragments: list[str]) -> None:
    (tmp_path / "mine.py").write_text(source)
    assert_refused(evaluate(tmp_path, defense=f"{tmp_path}/mine.py:f"), *fragments)
    assert_nothing_written(tmp_path)


def test_the_traceback_behind_a_line_can_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def f(info):\n    return 1 / 0\n")
    monkeypatch.setenv("BENCH_TRACEBACK", "1")
    ended = evaluate(tmp_path, defense=f"{tmp_path}/mine.py:f")
    assert ended.code == 2 and "return 1 / 0" in ended.err and ended.err.splitlines()[-1].startswith("error: ")


def test_of_several_models_the_one_that_differs_when_built_again_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(LINEAR.format("eval()"))
    ended = evaluate(tmp_path, "--defense", plugin("Means"), defense=f"{tmp_path}/mine.py:f")
    assert ended.code == 1 and "mine.f: is not what was probed" in ended.err
    assert [path.parent.name for path in (tmp_path / "results/tiny").glob("*/defense.json")] == ["stand_ins.Means"]


def test_a_checkpoint_that_is_not_the_recorded_one_is_refused(tmp_path: Path) -> None:
    defense = build_defense(DefenseSpec("none"), load_data("digits").info)
    settings = load_config(write_config(tmp_path / "bench.yaml", STEP)).suite("tiny").training(load_data("digits"))
    path = checkpoints.checkpoint_path(defense, "none", settings, tmp_path / "weights")
    saved = checkpoints.save(defense, path, {"seconds": 1.0})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    ended = evaluate(tmp_path, "--checkpoints", tmp_path / "weights", defense="none")
    assert_refused(ended, f"checkpoint {path}: SHA-256 is", f"its record says {saved.sha256}")
    assert_nothing_written(tmp_path)


def test_a_missing_checkpoint_says_how_to_make_it(tmp_path: Path) -> None:
    ended = evaluate(tmp_path, "--checkpoints", tmp_path / "weights", defense="none")
    where = f"--checkpoints {tmp_path / 'weights'} --suite tiny --config {tmp_path / 'bench.yaml'}"
    making = f"`bench train --defense none {where}`"
    assert_refused(ended, f"does not exist; make it with {making}")
    assert_nothing_written(tmp_path)


def test_probabilities_are_a_flag_not_an_error(tmp_path: Path) -> None:
    ended = evaluate(tmp_path, defense=plugin("Probabilities"))
    assert ended.code == 0
    line = next(line for line in ended.out.splitlines() if "stand_ins.Probabilities" in line)
    assert "probabilities" in line.rpartition("×")[2]


def test_of_several_defenses_a_wrong_one_is_named_and_the_others_run(tmp_path: Path) -> None:
    ended = evaluate(tmp_path, "--defense", plugin("wrong_shape"))
    assert ended.code == 1
    assert "failed: stand_ins.wrong_shape: forward: expected logits of shape (32, 10)" in ended.err
    assert "stand_ins.Means" in ended.out


# -- results folders --------------------------------------------------------------------------------------------


def test_a_results_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("mine")
    assert_refused(evaluate(tmp_path), f"{tmp_path / 'results'} is not a folder")
    assert (tmp_path / "results").read_text() == "mine"


def test_a_results_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("bench.storing.store.tempfile.TemporaryFile", refuse)
    assert_refused(evaluate(tmp_path), f"{tmp_path} is not writable (Read-only file system)")
    assert_nothing_written(tmp_path)


# -- check ------------------------------------------------------------------------------------------------------


def check(folder: Path, name: str) -> Ended:
    config = write_config(folder / "bench.yaml", STEP)
    return run_bench("check", plugin(name), "--suite", "tiny", "--config", config, "--device", "cpu")


def test_check_prints_every_rule_and_writes_nothing(tmp_path: Path) -> None:
    ended = check(tmp_path, "Means")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[-1].endswith("rules: 0 broken, 0 with a warning.")
    assert "✓ It is in evaluation mode, all of it." in ended.out
    assert [path.name for path in tmp_path.iterdir()] == ["bench.yaml"]


def test_check_of_a_broken_defense_exits_with_2(tmp_path: Path) -> None:
    ended = check(tmp_path, "wrong_shape")
    assert ended.code == 2
    assert "✗ forward(x) returns" in ended.out and "got (32, 11)" in ended.out


def test_a_suite_in_another_ball_has_results_of_its_own(tmp_path: Path) -> None:
    attacks = {**STEP, "noise": {"draws": 5}, "unbounded": {"attack": plugin("one_step"), "eps": 1.0}}
    config = write_config(tmp_path / "bench.yaml", attacks)
    ended = evaluate(tmp_path, "--norm", "l2", "--eps", "128/255", config=config)
    assert ended.code == 0, ended
    assert "tiny@l2-128-255" in ended.out and "l2 eps 128/255" in ended.out
    reported = run_bench("report", "--results", tmp_path / "results", "--suite", "tiny@l2-128-255", "--format", "json")
    rows = {row["what"]: row for row in json.loads(reported.out)["results"]}
    assert rows["step"]["status"] == "not-applicable" and rows["noise"]["status"] == "complete"
    assert rows["noise"]["eps"] == 128 / 255 and "unbounded" not in rows


def test_fewer_examples_and_another_seed_have_results_of_their_own(tmp_path: Path) -> None:
    ended = evaluate(tmp_path, "--examples", "4", "--seed", "9")
    assert ended.code == 0, ended
    assert "tiny@4-examples@seed-9: digits, 4 examples" in ended.out and "seed 9" in ended.out
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["tiny-4-examples-seed-9"]


def test_with_another_seed_the_weights_stay_those_of_the_suite(tmp_path: Path) -> None:
    suite = load_config(write_config(tmp_path / "bench.yaml", STEP)).suite("tiny")
    digits = load_data("digits")
    assert suite.with_(seed=9).seed == 9
    assert suite.with_(seed=9).training(digits) == suite.training(digits)
    assert suite.with_(seed=3, examples=12) is suite


def test_a_file_in_the_current_folder_is_named_where_its_suites_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "bench.yaml", STEP)
    where = ["--results", "results", "--device", "cpu", "--defense", plugin("Means")]
    ended = run_bench("evaluate", "--suite", "tiny", *where)
    assert ended.code == 0 and ended.err.splitlines()[0] == "suite tiny: of bench.yaml"
    listed = run_bench("list", "suites").out
    assert "bench.yaml" in next(line for line in listed.splitlines() if line.startswith("tiny "))
    assert "shipped" in next(line for line in listed.splitlines() if line.startswith("digits"))
    text = (tmp_path / "bench.yaml").read_text()
    (tmp_path / "bench.yaml").write_text(text.replace("tiny:", "demo:"))
    ended = run_bench("evaluate", "--suite", "demo", *where)
    assert ended.err.splitlines()[0] == "suite demo: that of bench.yaml, in place of the shipped one"


@pytest.mark.parametrize(
    ("fields", "fragments"),
    [
        (
            {"threat_model": {"norm": "linf", "eps": 8}},
            ["eps: 8 is more than 1, the linf diameter", "did you mean 8/255?"],
        ),
        ({"threat_model": {"norm": "l2", "eps": 9}}, ["eps: 9 is more than 8, the l2 diameter of the box [0, 1]"]),
        ({"attacks": {"pgd": {"eps": 2}}}, ["attacks.pgd.eps: 2 is more than 1"]),
        ({"examples": 5000}, ["examples: 5000 is more than the ", " test examples of digits"]),
        ({"examples": None, "attacks": {"pgd": {"examples": 5000}}}, ["attacks.pgd.examples: 5000 is more than the"]),
    ],
)
def test_a_suite_that_does_not_fit_its_data_is_refused(
    tmp_path: Path, fields: dict[str, Any], fragments: list[str]
) -> None:
    config = write_config(tmp_path / "bench.yaml", **{"attacks": STEP, **fields})
    assert_refused(evaluate(tmp_path, config=config), *fragments)
    assert_nothing_written(tmp_path)


def test_evaluate_prints_json_and_nothing_else_when_asked(tmp_path: Path) -> None:
    ended = evaluate(tmp_path, "--json", "--quiet")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out)["suites"][0]["name"] == "tiny"


def test_a_long_run_is_announced_with_its_time(tmp_path: Path) -> None:
    attacks = dict.fromkeys("abcd", STEP["step"])
    ended = evaluate(tmp_path, config=write_config(tmp_path / "bench.yaml", attacks))
    assert ended.err.splitlines()[0].startswith("17 jobs, expected time: unknown")
    assert "--dry-run lists them" in ended.err
