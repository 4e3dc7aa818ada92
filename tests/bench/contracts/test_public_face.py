"""The names that plugins import from ``bench``."""

from __future__ import annotations

import subprocess
import sys

import pytest

import attacks
import bench
from bench.contracts.attack import attack
from bench.contracts.defense import Approximation, Card, Claim, Defense
from bench.contracts.detector import Detector
from bench.contracts.inputs import DataInfo
from bench.contracts.target import Target
from bench.running.front import evaluate


def test_every_name_is_the_contract_of_that_name() -> None:
    expected = [Approximation, Card, Claim, DataInfo, Defense, Detector, Target, attack, evaluate]
    assert [getattr(bench, name) for name in bench.__all__] == expected
    assert set(bench.__all__) <= set(dir(bench))


def test_attacks_run_is_importable_by_name() -> None:
    assert callable(attacks.run) and set(attacks.__all__) == {"Result", "run"}


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'bench' has no attribute 'Attack'"):
        bench.Attack  # noqa: B018


def test_importing_it_is_light() -> None:
    code = "import sys, bench, attacks, bench.cli.main; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
