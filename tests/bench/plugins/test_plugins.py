"""References become defenses and attacks, or one line that says why not."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from bench.contracts.attack import AttackSpec
from bench.contracts.defense import BareModel, Defense, DefenseSpec
from bench.contracts.errors import InputError, PluginError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.threat import Lp
from bench.plugins import references
from bench.plugins import resolve as plugins
from bench.plugins.references import resolve
from bench.plugins.registry import ATTACKS
from bench.plugins.resolve import build_defense, get_attack, load_defense
from bench.storing.checkpoints import TrainingSettings, checkpoint_path, save

INFO = DataInfo("toy", InputSpec((1, 4, 4)), 2)
DIGITS = DataInfo("digits", InputSpec((1, 8, 8)), 10)

DEFENSE = """
from torch import nn
from bench.contracts.defense import Defense

class Mine(Defense):
    trainable = False
    def __init__(self, data, radius: int = 1):
        super().__init__(data)
        self.radius = radius
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(16, data.num_classes))
"""


@pytest.fixture(autouse=True)
def _clean_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Put ``sys.path`` back and forget the plugins of a test afterwards (and no library: some load only once)."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(references, "_plugin_folders", set())
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


# -- references ---------------------------------------------------------------------------------------------


def test_a_file_with_and_without_a_name_is_the_same_class(tmp_path: Path) -> None:
    file = write(tmp_path, mine=DEFENSE) / "mine.py"
    named = resolve(f"{file}:Mine")
    assert isinstance(named, type) and issubclass(named, Defense)
    assert resolve(str(file)) is named


def test_a_registered_name_a_module_and_a_dotted_module_resolve() -> None:
    assert get_attack("noise") is get_attack("attacks.score.noise:noise") is get_attack("attacks.score.noise")


def test_siblings_are_imported_and_two_plugins_with_siblings_of_one_name_do_not_mix(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write(tmp_path / name, helper=f"WHO = '{name}'", mine="import helper\nwho = helper.WHO\n")
    assert resolve(f"{tmp_path}/first/mine.py:who") == "first"
    assert resolve(f"{tmp_path}/second/mine.py:who") == "second"


def test_a_package_folder_may_use_relative_imports_whatever_part_of_it_is_named(tmp_path: Path) -> None:
    inside = write(tmp_path / "pack", __init__="from .parts import Mine", parts=DEFENSE)
    assert issubclass(resolve(str(inside)), Defense)
    write(inside / "deep", __init__="", leaf="from ..parts import Mine\n")
    assert resolve(f"{inside}/deep/leaf.py:Mine") is resolve(f"{inside}/parts.py:Mine")


def test_a_folder_named_like_one_of_our_packages_does_not_hide_it(tmp_path: Path) -> None:
    write(tmp_path, mine=DEFENSE)
    write(tmp_path / "attacks", __init__="")
    code = (
        "import bench; from bench.plugins.references import resolve\n"
        f"resolve({str(tmp_path / 'mine.py')!r})\n"
        "import attacks; print(attacks.__file__.replace('attacks', 'bench') == bench.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize(("reference", "message"), [
    ("{folder}/mien.py", r"mien.py: no such file \(did you mean 'mine.py'\?\)"),
    ("{folder}/mine.py:Mnie", r"mine.py: defines no 'Mnie' \(did you mean 'Mine'\?\)"),
    ("{folder}", "the folder has no __init__.py"),
    ("{folder}/none.py", "none.py: expected one subclass of Defense or Detector, found none"),
    ("{folder}/two.py", "two.py: expected one subclass of Defense or Detector, found several: A, B;"
                        " write .*two.py:NAME"),
    ("no_such_module:x", "module 'no_such_module' does not exist"),
    ("attacks.nosuch:x", "module 'attacks.nosuch' does not exist"),
])  # fmt: skip
def test_a_reference_that_leads_nowhere_is_one_line(tmp_path: Path, reference: str, message: str) -> None:
    two = "from bench.contracts.defense import Defense\nclass A(Defense): ...\nclass B(Defense): ...\n"
    write(tmp_path, mine=DEFENSE, none="x = 1", two=two)
    with pytest.raises(InputError, match=message) as caught:
        resolve(reference.format(folder=tmp_path))
    assert "\n" not in str(caught.value)


def test_an_unknown_name_suggests_a_registered_one() -> None:
    with pytest.raises(InputError, match=r"attack 'pdg' does not exist \(did you mean 'pgd'\?\)"):
        resolve("pdg", ATTACKS)


def test_an_error_inside_a_file_is_reported_as_its_own_and_the_file_can_be_mended(tmp_path: Path) -> None:
    file = write(tmp_path, mine="import no_such_dependency\n") / "mine.py"
    with pytest.raises(PluginError, match=r"mine.py cannot be imported: .*no_such_dependency"):
        resolve(str(file))
    file.write_text(DEFENSE)
    assert issubclass(resolve(str(file)), Defense)


# -- building -----------------------------------------------------------------------------------------------


def build(file: Path, member: str = "", **params: object) -> Defense:
    return build_defense(DefenseSpec(f"{file}:{member}" if member else str(file), params), INFO)


def test_parameters_from_the_command_line_get_the_annotated_type(tmp_path: Path) -> None:
    file = write(tmp_path, mine=DEFENSE) / "mine.py"
    assert build(file, radius="3").radius == 3


@pytest.mark.parametrize(("params", "message"), [
    ({"raduis": "3"}, r"no parameter 'raduis' \(did you mean 'radius'\?\)"),
    ({"radius": "wide"}, "parameter radius: .*valid integer.*'wide'"),
    ({"data": "x"}, "no parameter 'data'"),
])  # fmt: skip
def test_a_wrong_parameter_is_named(tmp_path: Path, params: dict[str, object], message: str) -> None:
    file = write(tmp_path, mine=DEFENSE) / "mine.py"
    with pytest.raises(InputError, match=message):
        build(file, **params)


MODELS = """
import torch
from torch import nn
from bench.contracts.inputs import DataInfo, InputSpec

def net(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, classes))

model = net(2).eval()
def plain(): return net(2).eval()
def by_data(data): return net(data.num_classes).eval()
def by_annotation(data: DataInfo = None, depth=2): return net(data.num_classes).eval() if depth == 3 else None
def by_default(width=16): return net(2).eval() if width == 4 else None
def needs(data, strength: float): return net(2)
def left_training(): return net(2)
def not_a_model(): return "resnet"
text = "resnet"
"""


@pytest.mark.parametrize(("member", "params"), [
    ("model", {}), ("plain", {}), ("by_data", {}), ("by_annotation", {"depth": "3"}), ("by_default", {"width": "4"}),
])  # fmt: skip
def test_any_model_is_wrapped_as_it_is(tmp_path: Path, member: str, params: dict[str, object]) -> None:
    defense = build(write(tmp_path, models=MODELS) / "models.py", member, **params)
    assert isinstance(defense, BareModel)
    assert defense(torch.rand(3, 1, 4, 4)).shape == (3, 2)
    assert not defense.training and not defense.classifier.training


@pytest.mark.parametrize(("member", "params", "message"), [
    ("model", {"a": 1}, "is a model already and takes no parameters"),
    ("needs", {}, "parameter 'strength' is required"),
    ("not_a_model", {}, "returned str, expected a torch.nn.Module"),
    ("text", {}, "expected a Defense, a model or a function, got str"),
])  # fmt: skip
def test_what_is_no_model_is_refused(tmp_path: Path, member: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(write(tmp_path, models=MODELS) / "models.py", member, **params)


def test_the_mode_a_function_returns_is_left_for_the_harness_to_report(tmp_path: Path) -> None:
    defense = build(write(tmp_path, models=MODELS) / "models.py", "left_training")
    assert defense.training and defense.classifier.training


def test_a_class_that_is_constructed_here_is_not_blamed_for_its_mode(tmp_path: Path) -> None:
    assert not build(write(tmp_path, mine=DEFENSE) / "mine.py").training


def test_literals_and_options_are_converted(tmp_path: Path) -> None:
    def factory(kind: Literal["soft", "hard"], limit: int | None = None, flag: bool = False) -> nn.Module:
        assert (kind, limit, flag) == ("soft", 4, True)
        return nn.Identity()

    made = plugins._build(factory, DefenseSpec("f", {"kind": "soft", "limit": "4", "flag": "true"}), INFO)
    assert isinstance(made, BareModel)


# -- loading ------------------------------------------------------------------------------------------------

TRAINED = DEFENSE.replace("trainable = False", "def fit(self, run): ...")


def test_trained_weights_are_loaded_from_the_named_folder(tmp_path: Path) -> None:
    file = write(tmp_path, mine=TRAINED) / "mine.py"
    spec = DefenseSpec(f"{file}:Mine", checkpoints=tmp_path / "weights")
    original = build_defense(spec, INFO)
    settings = TrainingSettings(INFO.name, 1, Lp("linf", 0.1), seed=1)
    path = checkpoint_path(original, spec.name, settings, spec.checkpoints)
    sha256 = save(original, path, {"seconds": 7}).sha256

    loaded = load_defense(spec, INFO, "cpu", settings)

    assert (loaded.checkpoint, loaded.sha256, loaded.training) == (path, sha256, {"seconds": 7})
    assert torch.equal(loaded.defense.classifier[1].weight, original.classifier[1].weight)


def test_a_trained_defense_without_checkpoint_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, mine=TRAINED) / "mine.py"
    with pytest.raises(InputError, match="does not exist"):
        load_defense(DefenseSpec(f"{file}:Mine"), INFO)


def test_a_defense_without_recipe_needs_no_checkpoint(tmp_path: Path) -> None:
    loaded = load_defense(DefenseSpec(str(write(tmp_path, mine=DEFENSE) / "mine.py")), INFO)
    assert (loaded.checkpoint, loaded.sha256, loaded.training) == (None, None, {})


def test_the_code_hash_follows_the_file_even_when_it_only_returns_a_library_model(tmp_path: Path) -> None:
    hashes = []
    for folder, scale in (("a", 1.0), ("b", 2.0), ("c", 1.0)):
        text = f"from torch import nn\nmodel = nn.Sequential(nn.Flatten(), nn.Dropout({scale} / 4)).eval()\n"
        file = write(tmp_path / folder, models=text) / "models.py"
        hashes.append(load_defense(DefenseSpec(f"{file}:model"), INFO).version)
    assert hashes[0] == hashes[2] != hashes[1]


SUBCLASS = """
from defenses.input_transformation.jpeg import JPEG

class Mine(JPEG):
    trainable = False
    {body}
"""


def test_a_version_is_declared_or_hashed_and_never_inherited(tmp_path: Path) -> None:
    def version(body: str, folder: str) -> int | str:
        file = write(tmp_path / folder, mine=SUBCLASS.format(body=body)) / "mine.py"
        return load_defense(DefenseSpec(str(file)), DIGITS).version

    assert version("version = 7", "declared") == 7
    silent, other = version("pass", "silent"), version("quality_of_life = 1", "other")
    assert isinstance(silent, str) and silent != other
    assert load_defense(DefenseSpec("jpeg"), DIGITS).version == 1


def test_another_version_of_what_a_plugin_extends_is_another_version_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = DefenseSpec(str(write(tmp_path, mine=SUBCLASS.format(body="pass")) / "mine.py"))
    before = load_defense(spec, DIGITS).version
    monkeypatch.setattr("defenses.input_transformation.jpeg.JPEG.version", 2)
    assert load_defense(spec, DIGITS).version != before


def test_libraries_that_a_defense_depends_on_are_part_of_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.metadata.version("pillow")
    assert load_defense(DefenseSpec("jpeg"), DIGITS).libraries == {"pillow": installed}
    assert load_defense(DefenseSpec("none"), DIGITS).libraries == {}
    monkeypatch.setattr("defenses.input_transformation.jpeg.JPEG.depends", ("no-such-library",))
    with pytest.raises(InputError, match="defense JPEG: depends on 'no-such-library', which is not installed"):
        load_defense(DefenseSpec("jpeg"), DIGITS)


def test_the_same_reference_builds_the_same_module_name_in_another_process(tmp_path: Path) -> None:
    file = write(tmp_path, mine=DEFENSE) / "mine.py"
    here = resolve(str(file)).__module__
    code = f"from bench.plugins.references import resolve; print(resolve({str(file)!r}).__module__)"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


# -- attacks ------------------------------------------------------------------------------------------------

ATTACK = """
from bench.contracts.attack import attack

@attack("mine", knowledge="score", norms=("linf",))
def mine(target, x, y, *, steps: int = 3):
    return x

def forgotten(target, x, y): return x
"""


def test_an_attack_file_is_found_by_its_decorator(tmp_path: Path) -> None:
    spec = get_attack(str(write(tmp_path, hit=ATTACK) / "hit.py"))
    assert isinstance(spec, AttackSpec)
    assert (spec.name, spec.knowledge) == ("mine", "score")


def test_an_undecorated_function_is_answered_with_the_decorator(tmp_path: Path) -> None:
    file = write(tmp_path, hit=ATTACK) / "hit.py"
    with pytest.raises(InputError, match=r'is not registered; decorate the function with @attack\("name"'):
        get_attack(f"{file}:forgotten")
