"""``bench.yaml``: what is accepted, and what each mistake is answered with."""

from __future__ import annotations

import copy
import json
import pickle
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

import bench
from bench.contracts.errors import InputError, PluginError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.threat import Lp
from bench.data.load import load_data
from bench.plugins.registry import ATTACKS
from bench.storing.checkpoints import TrainingSettings
from bench.suites.attacks import resolve_attacks
from bench.suites.config import Config, variants_of
from bench.suites.reading import json_schema, load_config, schema_text

ROOT = Path(__file__).parents[3]
WAVES = DataInfo("waves", InputSpec((1, 64), -1.0, 1.0, "waveform"), 3)

SUITE: dict[str, Any] = {
    "data": "digits",
    "threat_model": {"norm": "linf", "eps": "8/255"},
    "attacks": {"noise": None, "naive": {"attack": "pgd", "steps": 3}},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The configuration with one field set; ``path`` is relative to the suite."""
    config = {"suites": {"demo": copy.deepcopy(SUITE)}}
    *parents, last = path.split(".")
    place = config["suites"]["demo"]
    for key in parents:
        place = place[key]
    place[last] = value
    return config


def read(folder: Path, config: Any) -> Config:
    file = folder / "bench.yaml"
    file.write_text(config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False))
    return load_config(file)


def complaint(folder: Path, config: Any) -> str:
    """The one line after the name of the file."""
    with pytest.raises(InputError) as caught:
        read(folder, config)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{folder / 'bench.yaml'}: ")


# -- the shipped file ---------------------------------------------------------------------------------------


def test_the_shipped_suites_load_and_every_attack_in_them_exists() -> None:
    config = load_config(ROOT / "bench.yaml")
    assert {"demo", "digits", "cifar10", "cifar10-small"} <= set(config.suites)
    _, problems = ATTACKS.load_all()
    assert problems == []
    for suite in config.suites.values():
        attacks = resolve_attacks(suite)
        assert [attack.name for attack in attacks] == list(suite.attacks)
        # Those that compare attacks rank no defense.
        unbounded = [] if suite.study or suite.name in ("budgets", "digits-2-doubled") else ["unbounded"]
        assert [attack.name for attack in attacks if not attack.counted] == unbounded


def test_the_studies_repeat_table_1_and_figure_6_of_xiao_and_zheng() -> None:
    config = load_config(ROOT / "bench.yaml")
    names = [spec.name for spec in variants_of(config.suite("ours-external"))]
    epochs = [f"ours(external=standard,external_epochs={k})" for k in (1, 2, 5, 10, 15, 20)]
    assert names == ["ours(external=untrained)", *epochs, "ours"]
    assert [spec.name for spec in variants_of(config.suite("ours-radius"))].count("ours") == 1
    assert variants_of(config.suite("digits")) == []
    for name in ("ours-external", "ours-radius"):
        for attack, entry in config.suite(name).attacks.items():
            assert entry == config.suite("digits").attacks[attack]


def test_the_suites_have_the_settings_they_are_known_for() -> None:
    config = load_config(ROOT / "bench.yaml")
    assert config.suite("demo").examples == 64
    assert config.suite("digits").examples is None
    assert config.suite("cifar10").threat_model.eps == 8 / 255


def test_the_packaged_copy_is_the_file_in_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = Path(bench.__file__).with_name("bench.yaml")
    assert packaged.read_bytes() == (ROOT / "bench.yaml").read_bytes()
    monkeypatch.chdir(tmp_path)
    assert load_config().model_dump() == load_config(ROOT / "bench.yaml").model_dump()


def test_a_file_in_the_current_folder_adds_to_the_shipped_suites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = load_config().suites
    read(tmp_path, {"suites": {"mine": SUITE}})
    config = load_config()
    assert list(config.suites) == [*shipped, "mine"]
    assert (config.suite("mine").origin, config.suite("digits").origin) == ("bench.yaml", "shipped")
    digits = load_data("digits")
    assert config.suite("mine").training(digits).options == "--suite mine", "the file is found without being named"
    assert load_config(tmp_path / "bench.yaml").suite("digits").training(digits).options == "--suite digits"


def test_a_suite_that_has_the_name_of_a_shipped_one_takes_its_place_and_knows_it(tmp_path: Path) -> None:
    config = read(tmp_path, {"suites": {"demo": SUITE, "mine": SUITE}})
    assert config.suite("demo").attacks.keys() == SUITE["attacks"].keys()
    assert [config.suite(name).replaces for name in ("demo", "mine", "digits")] == [True, False, False]
    same = read(tmp_path, (ROOT / "bench.yaml").read_text())
    assert not any(suite.replaces for suite in same.suites.values())


def test_the_schema_in_the_root_is_up_to_date_and_named_in_the_file() -> None:
    assert (ROOT / "bench.schema.json").read_text(encoding="utf-8") == schema_text(), "run `make schema`"
    assert (ROOT / "bench.yaml").read_text().startswith("# yaml-language-server: $schema=bench.schema.json\n")


def test_every_field_of_the_schema_is_described() -> None:
    schema = json_schema()
    for model in (schema, *schema["$defs"].values()):
        for name, field in model["properties"].items():
            assert field.get("description"), f"{model['title']}.{name}"
    assert json.loads(schema_text()) == schema


# -- reading ------------------------------------------------------------------------------------------------


def test_defaults_are_filled_in_and_fractions_become_numbers(tmp_path: Path) -> None:
    suite = read(tmp_path, {"suites": {"demo": SUITE}}).suite("demo")
    assert suite.name == "demo"
    assert suite.threat_for(WAVES) == Lp("linf", 8 / 255, -1.0, 1.0)
    assert suite.threat_for(WAVES, 0.5) == Lp("linf", 0.5, -1.0, 1.0)
    assert (suite.split, suite.examples, suite.false_positive_rate, suite.reference) == ("test", None, 0.05, "none")
    assert (suite.draws.select, suite.draws.report) == (20, 100)


def test_a_suite_says_which_weights_it_evaluates(tmp_path: Path) -> None:
    digits = load_data("digits")
    own = read(tmp_path, {"suites": {"demo": {**SUITE, "seed": 3}}}).suite("demo").training(digits)
    assert own == TrainingSettings("digits", digits.version, Lp("linf", 8 / 255), seed=3)
    file = shlex.quote(str(tmp_path / "bench.yaml"))
    assert own.any_seed and own.options == f"--suite demo --config {file}"
    other = read(tmp_path, changed("trained_for", {"norm": "l2", "eps": 0.5, "seed": 4})).suite("demo")
    settings = other.with_(data="folder:my images").training(digits)
    assert settings == TrainingSettings("digits", digits.version, Lp("l2", 0.5), seed=4)
    assert not settings.any_seed and settings.options == f"--suite demo --data 'folder:my images' --config {file}"
    assert complaint(tmp_path, changed("trained_for", {"norm": "l2"})) == "suites.demo.trained_for.eps: is required"
    misspelt = complaint(tmp_path, changed("trained_for", {"norm": "l2", "eps": 1, "sed": 1}))
    assert misspelt == "suites.demo.trained_for.sed: there is no such field (did you mean 'seed'?)"


def test_in_another_ball_the_weights_stay_those_of_the_suite(tmp_path: Path) -> None:
    digits, suite = load_data("digits"), read(tmp_path, {"suites": {"demo": SUITE}}).suite("demo")
    other = suite.with_(norm="l2", eps=0.5)
    assert other.threat_for(digits.info) == Lp("l2", 0.5)
    assert other.training(digits) == suite.training(digits)
    assert other.training(digits).options == suite.training(digits).options, "which train them"
    assert other.with_(eps=1).training(digits) == suite.training(digits)


def test_a_suite_keeps_its_name_on_the_way_to_a_worker(tmp_path: Path) -> None:
    suite = read(tmp_path, {"suites": {"demo": SUITE}}).suite("demo")
    assert pickle.loads(pickle.dumps(suite)).name == "demo"


def test_a_suite_on_other_data_or_in_another_ball_has_a_name_of_its_own(tmp_path: Path) -> None:
    suite = read(tmp_path, changed("threat_model.radii", ["4/255", 0.01])).suite("demo")
    assert suite.with_() is suite.with_(data=suite.data, norm="linf", eps="8/255") is suite
    other = suite.with_(data="folder:photos/birds")
    assert (other.name, other.data, other.threat_model) == ("demo@birds", "folder:photos/birds", suite.threat_model)
    small = suite.with_(eps="4/255")
    assert (small.name, small.threat_for(WAVES)) == ("demo@linf-4-255", Lp("linf", 4 / 255, -1, 1))
    assert small.threat_model.radii == [0.01, 4 / 255]
    both = suite.with_(data="cifar10", norm="l2", eps=0.5)
    assert (both.name, both.data, both.threat_for(WAVES)) == ("demo@cifar10@l2-0.5", "cifar10", Lp("l2", 0.5, -1, 1))
    assert both.threat_model.radii == [] and suite.name == "demo"


def test_a_radius_of_an_entrys_own_means_nothing_in_another_norm(tmp_path: Path) -> None:
    suite = read(tmp_path, changed("attacks.naive.eps", 1.0)).suite("demo")
    assert list(suite.with_(eps=0.1).attacks) == ["noise", "naive"]
    assert list(suite.with_(norm="l2", eps=0.5).attacks) == ["noise"]


@pytest.mark.parametrize(("change", "message"), [
    ({"norm": "l2"}, r"norm l2: needs an eps, as the suite's \(8/255\) is one of linf"),
    ({"norm": "l3", "eps": 1}, "norm: 'l3' must be 'linf', 'l2', 'l1' or 'l0'"),
    ({"eps": "8/0"}, "eps: '8/0' must be a valid number"),
    ({"eps": "0"}, "eps: '0' must be greater than 0"),
])  # fmt: skip
def test_a_ball_that_is_none_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, {"suites": {"demo": SUITE}}).suite("demo").with_(**change)


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    text = yaml.safe_dump(changed("attacks.naive", {"attack": "pgd", "momentum": "@"})).replace("'@'", "1e-3")
    assert read(tmp_path, text).suite("demo").attacks["naive"].params == {"momentum": 0.001}


@pytest.mark.parametrize(("path", "value", "message"), [
    ("threat_model.eps", -1, "suites.demo.threat_model.eps: -1 must be greater than 0"),
    ("threat_model.eps", "8/0", "suites.demo.threat_model.eps: '8/0' must be a valid number"),
    ("threat_model.eps", "wide", "suites.demo.threat_model.eps: 'wide' must be a valid number"),
    ("threat_model.eps", float("nan"), "suites.demo.threat_model.eps: nan must be greater than 0"),
    ("threat_model.eps", float("inf"), "suites.demo.threat_model.eps: inf must be a finite number"),
    ("threat_model.norm", "l3", "suites.demo.threat_model.norm: 'l3' must be 'linf', 'l2', 'l1' or 'l0'"),
    ("threat_model.epsilon", 1, "suites.demo.threat_model.epsilon: there is no such field (did you mean 'eps'?)"),
    ("threat_model.radii", [1], "suites.demo.threat_model.radii: [1] must be at most eps, 8/255"),
    ("threat_model.radii", [0], "suites.demo.threat_model.radii.0: 0 must be greater than 0"),
    ("draws", {"report": 0}, "suites.demo.draws.report: 0 must be greater than or equal to 1"),
    ("shardsize", 3, "suites.demo.shardsize: there is no such field (did you mean 'shard_size'?)"),
    ("examples", "all", "suites.demo.examples: 'all' must be a valid integer"),
    ("examples", 0, "suites.demo.examples: 0 must be greater than or equal to 1"),
    ("examples_of", {"ours": 0}, "suites.demo.examples_of.ours: 0 must be greater than or equal to 1"),
    ("examples_of", {"ours": "all"}, "suites.demo.examples_of.ours: 'all' must be a valid integer"),
    ("examples_of", 20, "suites.demo.examples_of: 20 must be a mapping"),
    ("false_positive_rate", 1, "suites.demo.false_positive_rate: 1 must be less than 1"),
    ("split", "tset", "suites.demo.split: 'tset' must be 'train', 'validation' or 'test'"),
    ("attacks.naive.eps", 0, "suites.demo.attacks.naive.eps: 0 must be greater than 0"),
    ("attacks.naive.knowledge", "all", "suites.demo.attacks.naive.knowledge: 'all' must be 'transfer', "),
    ("attacks.naive", 3, "suites.demo.attacks.naive: 3 must be a mapping"),
    ("attacks", {}, "suites.demo.attacks: {} must have at least 1 item"),
    ("attacks.clean", {"attack": "pgd"}, "suites.demo.attacks: 'clean' is the name of the unattacked input"),
])  # fmt: skip
def test_a_wrong_field_is_named_with_its_path_its_value_and_the_rule(
    tmp_path: Path, path: str, value: Any, message: str
) -> None:
    assert complaint(tmp_path, changed(path, value)).startswith(message)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    config = {"suites": {"demo": {**SUITE}}}
    del config["suites"]["demo"]["data"]
    assert complaint(tmp_path, config) == "suites.demo.data: is required"


@pytest.mark.parametrize(("text", "message"), [
    ("suites: {a: 1, a: 2}", "line 1: key 'a' appears twice"),
    ("suites:\n  demo: [", "while parsing a flow node"),
    ("- 1", "[1] must be a mapping"),
    ("", "is empty"),
    ("suite: {}", "suites: is required"),
    ("suites: {}\nsuits: {}", "suites: {} must have at least 1 item"),
    ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
])  # fmt: skip
def test_a_malformed_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    assert complaint(tmp_path, text).startswith(message)


def test_names_that_cannot_be_folders_are_refused(tmp_path: Path) -> None:
    assert complaint(tmp_path, {"suites": {"../up": SUITE}}).startswith("suites.../up: '../up' must match pattern")


def test_a_missing_file_and_an_unknown_suite(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml: No such file"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(
        InputError, match=r"suite 'dmeo' does not exist, neither shipped nor in .*bench.yaml \(did you mean 'demo'\?\)"
    ):
        read(tmp_path, {"suites": {"demo": SUITE}}).suite("dmeo")


# -- attacks of a suite -------------------------------------------------------------------------------------


def test_an_entry_is_resolved_with_all_its_parameters(tmp_path: Path) -> None:
    noise, naive = resolve_attacks(read(tmp_path, {"suites": {"demo": SUITE}}).suite("demo"))
    assert (noise.name, noise.spec.name, noise.params) == ("noise", "noise", {"draws": 100, "corners": False})
    assert (naive.name, naive.spec.name, naive.params["steps"]) == ("naive", "pgd", 3)
    assert naive.params.keys() == naive.spec.parameters().keys()
    assert naive.counted and (naive.norm, naive.eps) == ("linf", 8 / 255)
    assert (noise.knowledge, naive.knowledge) == ("decision", "gradient")


def test_another_radius_is_a_sanity_check_that_does_not_count(tmp_path: Path) -> None:
    config = changed("attacks.naive.eps", 1.0)
    _, naive = resolve_attacks(read(tmp_path, config).suite("demo"))
    assert not naive.counted and (naive.norm, naive.eps) == ("linf", 1.0)


def test_a_smaller_radius_is_inside_the_threat_model_and_counts(tmp_path: Path) -> None:
    _, naive = resolve_attacks(read(tmp_path, changed("attacks.naive.eps", "4/255")).suite("demo"))
    assert naive.counted and (naive.norm, naive.eps) == ("linf", 4 / 255)


def test_radii_are_in_order_and_each_once(tmp_path: Path) -> None:
    suite = read(tmp_path, changed("threat_model.radii", ["4/255", 0.01, "8/510", "8/255"])).suite("demo")
    assert suite.threat_model.radii == [0.01, 4 / 255, 8 / 255]


def test_an_entry_may_be_shown_less_than_its_attack_and_not_more(tmp_path: Path) -> None:
    _, naive = resolve_attacks(read(tmp_path, changed("attacks.naive.knowledge", "score")).suite("demo"))
    assert naive.knowledge == "score"
    config = read(tmp_path, changed("attacks.noise", {"knowledge": "score"}))
    with pytest.raises(InputError, match=r"suites.demo.attacks.noise.knowledge: 'score' is more than noise has"):
        resolve_attacks(config.suite("demo"))


@pytest.mark.parametrize(("entry", "message"), [
    ({"attack": "pdg"}, r"suites.demo.attacks.naive: attack 'pdg' does not exist \(did you mean 'pgd'\?\)"),
    ({"attack": "pgd", "stesp": 1}, r"suites.demo.attacks.naive.stesp: .*did you mean 'steps'"),
    ({"attack": "pgd", "steps": 0}, r"suites.demo.attacks.naive.steps: .*greater than or equal to 1"),
    ({"attack": "pgd", "estimator": "exactly"}, r"suites.demo.attacks.naive.estimator: .*did you mean 'exact'"),
])  # fmt: skip
def test_a_wrong_entry_is_named_with_its_path(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    suite = read(tmp_path, changed("attacks.naive", entry)).suite("demo")
    with pytest.raises(InputError, match=message):
        resolve_attacks(suite)


def test_an_attack_that_lacks_the_norm_is_listed_all_the_same(tmp_path: Path) -> None:
    suite = read(tmp_path, changed("threat_model", {"norm": "l1", "eps": 2})).suite("demo")
    assert [attack.norm for attack in resolve_attacks(suite)] == ["l1", "l1"]


def test_only_the_entries_asked_for_in_the_order_of_the_suite(tmp_path: Path) -> None:
    suite = read(tmp_path, {"suites": {"demo": SUITE}}).suite("demo")
    assert [attack.name for attack in resolve_attacks(suite, ["naive", "noise", "naive"])] == ["noise", "naive"]
    with pytest.raises(InputError, match=r"suite demo has no attack 'niose' \(did you mean 'noise'\?\)"):
        resolve_attacks(suite, ["niose"])


def test_a_broken_attack_plugin_is_reported_and_the_rest_runs(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_dependency\n")
    suite = read(tmp_path, changed("attacks.naive", {"attack": str(broken)})).suite("demo")
    problems: list[str] = []
    assert [attack.name for attack in resolve_attacks(suite, problems=problems)] == ["noise"]
    assert len(problems) == 1 and "no_such_dependency" in problems[0]
    with pytest.raises(PluginError):
        resolve_attacks(suite)
