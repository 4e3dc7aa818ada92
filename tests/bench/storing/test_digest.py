"""Hashes change when meaning changes, and only then."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from attacks.gradient.pgd import pgd
from attacks.score.noise import noise
from bench.contracts.threat import Lp
from bench.storing.digest import PACKAGES, _canonical, _parse, _Source, code_digest, digest, state_digest

MAIN = '''"""Docstring."""
from typing import TYPE_CHECKING
import helper
if TYPE_CHECKING:
    import unrelated

class Thing:
    """Doc."""
    def value(self):
        return helper.f(1)  # comment
'''
HELPER = "from deeper import g\ndef f(x):\n    return g(x)\n"


def load(folder: Path, **files: str) -> ModuleType:
    """Write files and import ``main`` of them; the cache of parsed files sees a new modification time."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    spec = importlib.util.spec_from_file_location(f"main_{folder.name}", folder / "main.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    return module


def hashed(folder: Path, **changed: str) -> str:
    files = {"main": MAIN, "helper": HELPER, "deeper": "def g(x):\n    return x\n", "unrelated": "x = 1\n"}
    return code_digest(load(folder, **{**files, **changed}))


@pytest.mark.parametrize("changed", [
    {"main": MAIN.replace("# comment", "# another remark")},
    {"main": MAIN.replace('"""Doc."""', '"""Better words."""')},
    {"main": MAIN.replace("return helper.f(1)", "return (\n            helper.f( 1 )\n        )")},
    {"main": MAIN.replace("    import unrelated", "    import another")},
    {"main": MAIN.replace("    def value", "    card = 'Better'\n    def value")},
    {"main": MAIN.replace("    def value", "    card: str = 'Better'\n    def value")},
    {"unrelated": "x = 2\n"},
    {"stranger": "y = 0\n"},
])  # fmt: skip
def test_comments_docstrings_layout_type_imports_and_cards_do_not_count(
    tmp_path: Path, changed: dict[str, str]
) -> None:
    assert hashed(tmp_path / "a") == hashed(tmp_path / "b", **changed)


@pytest.mark.parametrize("changed", [
    {"main": MAIN.replace("f(1)", "f(2)")},
    {"main": MAIN.replace("f(1)", "f('1')")},
    {"main": MAIN.replace("    def value", "    scale = 2\n    def value")},
    {"helper": HELPER.replace("g(x)", "-g(x)")},
    {"deeper": "def g(x):\n    return x + 1\n"},
])  # fmt: skip
def test_code_counts_wherever_it_is_imported_from(tmp_path: Path, changed: dict[str, str]) -> None:
    assert hashed(tmp_path / "a") != hashed(tmp_path / "b", **changed)


@pytest.mark.parametrize("statement", [
    "from .helper import f", "from . import helper", "import pack.helper", "from pack import helper", "import helper",
])  # fmt: skip
def test_every_way_to_import_a_sibling_of_a_package_is_followed(tmp_path: Path, statement: str) -> None:
    hashes = set()
    for value in (1, 2):
        folder = tmp_path / str(value) / "pack"
        (tmp_path / str(value)).mkdir()
        module = load(folder, main=f"{statement}\n", helper=f"def f():\n    return {value}\n", __init__="")
        hashes.add(code_digest(module))
    assert len(hashes) == 2


def test_an_import_inside_a_function_counts(tmp_path: Path) -> None:
    main = "def f():\n    from helper import f as g\n    return g()\n"
    hashes = {hashed(tmp_path / name, main=main, helper=f"f = {name!r}") for name in ("a", "b")}
    assert len(hashes) == 2


def test_the_folder_does_not_count(tmp_path: Path) -> None:
    assert hashed(tmp_path / "here") == hashed(tmp_path / "there")


@pytest.mark.parametrize("package", PACKAGES)
def test_the_packages_of_this_project_are_not_followed(tmp_path: Path, package: str) -> None:
    """What they do is told by declared versions; a reworded error message there makes no plugin stale."""
    main = f"from {package} import anything\nimport {package}.deeper\n"
    file = tmp_path / "plugin" / "main.py"
    file.parent.mkdir()
    file.write_text(main)
    (file.parent / package).mkdir()
    for name in ("__init__", "anything", "deeper"):  # not even where a folder beside the plugin has such a name
        (file.parent / package / f"{name}.py").write_text("")
    assert list(_Source.of(file).imports()) == []


def test_functions_partials_and_classes_are_hashed() -> None:
    assert code_digest(pgd) == code_digest(functools.partial(pgd, steps=3)) != code_digest(noise)
    assert code_digest(Lp) == code_digest(Lp("linf", 1.0))


def test_a_class_of_an_installed_library_is_not_followed_into_the_library() -> None:
    class Wrapped(nn.Linear):
        pass

    assert code_digest(Wrapped) == code_digest(sys.modules[__name__])


def test_the_written_tree_leaves_out_empty_fields_that_differ_between_versions(tmp_path: Path) -> None:
    import ast

    text = _canonical(ast.parse("def f(): pass"))
    assert text == "Module(body=[FunctionDef(name='f',args=arguments(),body=[Pass()])])"


def test_an_edited_file_is_parsed_again(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("a = 1\n")
    first = _Source.of(file).parsed
    file.write_text("a = 22\n")
    assert _Source.of(file).parsed.meaning != first.meaning
    assert _parse.cache_info().maxsize is not None


def test_values_are_hashed_by_content_and_sorted_keys() -> None:
    assert digest({"a": 1, "b": [2, None]}) == digest({"b": [2, None], "a": 1})
    assert len({digest(1), digest("1"), digest([1]), digest(1, 1), digest(1.5), digest(None), digest(True)}) == 7


def test_state_is_hashed_by_name_type_shape_and_value() -> None:
    model = nn.BatchNorm1d(2)
    first = state_digest(model)
    assert state_digest(nn.BatchNorm1d(2)) == first
    model.running_mean[0] = 1e-30
    assert state_digest(model) != first
    assert state_digest(nn.Linear(2, 2).to(torch.bfloat16)) != state_digest(nn.Linear(2, 2))
    assert len({state_digest(nn.ParameterList([torch.zeros(shape)])) for shape in ((4,), (2, 2), ())}) == 3
