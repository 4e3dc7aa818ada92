"""Without root the levels are the same; where user namespaces are forbidden the level falls, is recorded and shown.

Each runs for real, in a process of its own: as an ordinary user, and where no more user namespaces may be made.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import isolated
import pytest
from small_bench import STEP, Bench
from stand_ins import run_bench

from bench.contracts.defense import DefenseSpec
from bench.isolation import bubblewrap
from bench.isolation.opening import objection
from bench.isolation.places import places

PLUGIN = f"{isolated.__file__}:Honest"
#: A user without any privilege; and one who also has no user namespace to get some in, which bubblewrap needs.
ORDINARY = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
FORBIDDEN = [
    "unshare", "--user", "--map-root-user", "sh", "-c",
    'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all "$@"', "sh",
]  # fmt: skip


def run_as(prefix: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """``bench`` behind a prefix that takes rights from it."""
    command = [*prefix, sys.executable, "-c", "from bench.cli.main import main; main()", *arguments]
    environment = {**os.environ, "BENCH_ISOLATION": "auto", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@functools.cache
def _strongest() -> str:
    """What this machine has for the plugin without bubblewrap."""
    where = places(DefenseSpec(PLUGIN), [])
    return next(level for level in ("landlock", "process") if not objection(level, where))  # type: ignore[arg-type]


def configured(tmp_path: Path) -> Bench:
    """A suite whose reference can be built without a data set, as in isolation it has to be."""
    return Bench(tmp_path / "work").configure({"step": STEP}, reference="none")


def needs(prefix: list[str]) -> None:
    if bubblewrap.program() is None:
        pytest.skip("no bwrap on the path")
    if not all(shutil.which(program) for program in ("unshare", "setpriv")):
        pytest.skip("no unshare and setpriv (util-linux) on the path")
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"user namespaces cannot be made here: {tried.stderr.strip()}")


def levels(bench: Bench) -> set[str]:
    return {record.isolation for attack in ("clean", "step") for record in bench.cell(attack, "isolated.Honest")}


def test_an_ordinary_user_has_the_strongest_level(tmp_path: Path) -> None:
    needs(ORDINARY)
    if subprocess.run([*ORDINARY, "bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"], check=False).returncode:
        pytest.skip("bubblewrap has no use of user namespaces here")
    bench = configured(tmp_path)
    ended = run_as(ORDINARY, *bench.arguments(PLUGIN), "--workers", "1")
    assert ended.returncode == 0, ended.stderr
    assert levels(bench) == {"bubblewrap"}


def test_where_user_namespaces_are_forbidden_the_level_falls_is_recorded_and_shown(tmp_path: Path) -> None:
    needs(FORBIDDEN)
    bench = configured(tmp_path)
    ended = run_as(FORBIDDEN, *bench.arguments(PLUGIN), "--workers", "1")
    assert ended.returncode == 0, ended.stderr
    assert levels(bench) == {_strongest()}
    (found,) = bench.summary.defenses
    assert found.isolation == _strongest()
    assert ("weakly-isolated" in {flag.id for flag in found.flags}) is (_strongest() == "process")
    (line,) = [
        line for line in run_bench("report", "--results", str(bench.results)).out.splitlines() if "isolated.H" in line
    ][:1]
    assert _strongest() in line.split()


def test_the_level_that_is_forbidden_is_refused_in_one_line_with_nothing_written(tmp_path: Path) -> None:
    needs(FORBIDDEN)
    bench = configured(tmp_path)
    ended = run_as(FORBIDDEN, *bench.arguments(PLUGIN), "--workers", "1", "--isolation", "bubblewrap")
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: isolation bubblewrap: cannot be had here: a model server cannot be started: bwrap: ")
    assert not bench.results.exists()
