"""Which files a server may read, and which defenses get a server."""

from __future__ import annotations

from pathlib import Path

import isolated
import pytest

from bench.contracts.defense import DefenseSpec
from bench.isolation.places import Places, is_foreign, libraries, places


def _tree(folder: Path) -> Path:
    names = "code/mine.py code/inner/other.py code/runs/suite.json data/labels.json data/public/read.me"
    for name in names.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


def _readable(found: Places, path: Path) -> bool:
    return any(whole and (str(path) == rule or str(path).startswith(f"{rule}/")) for rule, whole in found.rules())


def test_hidden_places_are_cut_out_of_readable_ones_and_the_longer_path_decides(tmp_path: Path) -> None:
    folder = _tree(tmp_path.resolve())
    readable, hidden = (folder / "code", folder / "data" / "public"), (folder / "code" / "runs", folder / "data")
    found = Places(tuple(map(str, readable)), tuple(map(str, hidden)))
    assert _readable(found, folder / "code" / "mine.py")
    assert _readable(found, folder / "code" / "inner" / "other.py")
    assert _readable(found, folder / "data" / "public" / "read.me")
    assert not _readable(found, folder / "code" / "runs" / "suite.json")
    assert not _readable(found, folder / "data" / "labels.json")
    assert (str(folder / "code"), False) in list(found.rules())  # its names can be listed


def test_a_link_is_no_way_round(tmp_path: Path) -> None:
    folder = _tree(tmp_path.resolve())
    (folder / "code" / "link").symlink_to(folder / "data")
    found = Places((str(folder / "code"),), (str(folder / "code" / "runs"),))
    assert "link" not in [Path(rule).name for rule, _ in found.rules()]


def test_a_place_that_is_both_is_hidden(tmp_path: Path) -> None:
    assert list(Places((str(tmp_path),), (str(tmp_path),)).rules()) == []


def test_of_a_plugin_its_folder_is_readable_and_of_this_project_the_code_alone(tmp_path: Path) -> None:
    folder, root = _tree(tmp_path.resolve()), Path(isolated.__file__).resolve().parents[2]
    found = places(DefenseSpec(f"{folder}/code/mine.py:Mine"), [folder / "code" / "runs"])
    assert _readable(found, folder / "code" / "mine.py")
    assert not _readable(found, folder / "code" / "runs" / "suite.json")
    assert not _readable(found, folder / "data" / "labels.json")
    assert _readable(found, root / "bench" / "contracts" / "defense.py")
    for hidden in ("results", "tests", "bench.yaml"):
        assert not _readable(found, root / hidden / "x" if hidden != "bench.yaml" else root / hidden)


def test_the_test_images_that_come_with_a_library_are_hidden() -> None:
    import sklearn.datasets

    data = Path(sklearn.datasets.__file__).resolve().parent / "data" / "digits.csv.gz"
    assert data.is_file()
    found = places(DefenseSpec("mine.py:Mine"), [])
    assert not _readable(found, data)
    assert _readable(found, data.parents[2] / "svm" / "__init__.py")


@pytest.mark.parametrize(
    ("reference", "params", "foreign"),
    [
        ("madry", {}, False),
        ("timm:resnet18", {}, False),
        ("mine.py:Mine", {}, True),
        ("package.module:Mine", {}, True),
        ("package.module", {}, True),
        ("folder/", {}, True),
        ("feature-squeezing", {"classifier": "madry"}, False),
        ("feature-squeezing", {"classifier": "mine.py:Mine"}, True),
    ],
)
def test_code_of_a_third_party_is_what_is_not_shipped_here(reference: str, params: dict, foreign: bool) -> None:
    assert is_foreign(DefenseSpec(reference, params)) is foreign


def test_libraries_that_a_defense_will_import_are_known_from_its_file_and_parameters(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from torchvision.models import resnet18\n")
    (tmp_path / "plain.py").write_text("import torch\n")
    assert libraries(DefenseSpec(f"{tmp_path}/mine.py:Mine")) == ("torchvision",)
    assert libraries(DefenseSpec(f"{tmp_path}/plain.py:Mine")) == ()
    assert libraries(DefenseSpec(f"{tmp_path}/not_there.py:Mine")) == ()
    assert libraries(DefenseSpec("timm:resnet18")) == ("timm",)
    assert libraries(DefenseSpec("madry", {"network": "torchvision.resnet18"})) == ("torchvision",)
    assert libraries(DefenseSpec("magnet", {"classifier": f"{tmp_path}/mine.py:Mine"})) == ("torchvision",)
