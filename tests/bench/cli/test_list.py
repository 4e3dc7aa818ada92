"""`bench list`, help and completion: quick, since they import no PyTorch; and whole when piped."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from stand_ins import run_bench

_RUN = """
import sys
from bench.cli.main import main
sys.argv = ["bench", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
assert "torch" not in sys.modules, "imports torch"
"""


def _alone(*arguments: str, **variables: str) -> str:
    """Run ``bench`` in a process of its own, where nothing has been imported."""
    ended = subprocess.run(
        [sys.executable, "-c", _RUN, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize(
    "command",
    [
        ("list",),
        ("list", "--json"),
        ("list", "attacks"),
        ("list", "defenses", "--json"),
        ("list", "suites"),
        ("--help",),
        ("evaluate", "--help"),
        ("--version",),
    ],
    ids=" ".join,
)
def test_listing_and_help_import_no_torch(command: tuple[str, ...]) -> None:
    assert _alone(*command)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("bench eva", "evaluate"),
        ("bench evaluate --dry", "--dry-run"),
        ("bench evaluate --defense ma", "madry"),
        ("bench check ma", "madry"),
        ("bench train --suite di", "digits"),
        ("bench evaluate --attack bp", "bpda-i"),
        ("bench evaluate --suite cifar10-small --attack auto", "autoattack"),
        ("bench report --suite de", "demo"),
    ],
)
def test_completion_knows_the_names_and_imports_no_torch(words: str, expected: str) -> None:
    count = str(len(words.split()) - 1)
    out = _alone(_BENCH_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=count)
    assert expected in {line.partition(",")[2] for line in out.splitlines()}


def test_all_kinds_are_listed_when_none_is_named() -> None:
    ended = run_bench("list", "--json")
    found = json.loads(ended.out)
    assert list(found) == ["defenses", "attacks", "suites"]
    assert found["attacks"] == json.loads(run_bench("list", "attacks", "--json").out)
    headings = [line.split()[0] for line in run_bench("list").out.splitlines() if "from" in line.split()[-1:]]
    assert headings == ["defense", "attack", "suite"]
