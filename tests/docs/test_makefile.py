"""`make demo` says what it is going to do, and how long that takes, before it starts; what it says is so."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.data.load import load_data
from bench.running.describe import attack_record
from bench.suites.attacks import resolve_attacks
from bench.suites.reading import load_config

REPOSITORY = Path(__file__).resolve().parents[2]
README = " ".join((REPOSITORY / "README.md").read_text(encoding="utf-8").split())


def announced(folder: Path, *, installed: bool) -> str:
    """What is said in a clone."""
    if shutil.which("make") is None:
        pytest.skip("make is not there")
    shutil.copy(REPOSITORY / "Makefile", folder)
    if installed:
        (folder / ".venv").mkdir()
        (folder / ".venv" / ".installed").touch()
    command = ["make", "--no-print-directory", "announce-demo"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_the_demo_says_its_size_and_its_time(tmp_path: Path) -> None:
    said, demo = announced(tmp_path, installed=True), load_config().suite("demo")
    attacks = [record for one in resolve_attacks(demo, problems=[]) if (record := attack_record(one)).applies_to(False)]
    size = "×".join(map(str, load_data(demo.data).info.shape[1:]))
    assert f"`ours` under {len(attacks)} attacks on {demo.examples} grey digits of {size} pixels" in said
    assert "minutes on two cores" in said and "GB" not in said


def test_the_first_time_the_size_of_the_install_is_said_as_in_the_readme(tmp_path: Path) -> None:
    said = announced(tmp_path, installed=False)
    loaded, installed = re.findall(r"about (\S+ GB)", said)
    assert f"downloads about {loaded} and installs about {installed}" in README


def test_it_is_said_before_anything_is_done() -> None:
    (rule,) = re.findall(r"^demo: (.+?) ##", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert rule.split()[0] == "announce-demo"
