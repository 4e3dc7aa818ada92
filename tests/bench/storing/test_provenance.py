"""Published files say where they came from, and do not say whose machine it was."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import datetime, timezone, tzinfo
from pathlib import Path

import pytest

from bench.storing import provenance

HOME = "/home/somebody"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", HOME)
    return tmp_path


@pytest.mark.parametrize(("argv", "expected"), [
    ([f"{HOME}/.venv/bin/bench", "list", "attacks"], "bench list attacks"),
    ([f"{HOME}/x/bench/__main__.py", "list"], "python -m bench list"),
    (["bench", "--defense", f"{HOME}/secret/mine.py:Mine"], "bench --defense mine.py:Mine"),
    (["bench", f"--results={HOME}/out dir"], "bench '--results=out dir'"),
    (["bench", f"--data=folder:{HOME}/images"], "bench --data=folder:images"),
    (["bench", "~/mine.py:Mine"], "bench mine.py:Mine"),
    (["bench", "--out", "../../somebody/site"], "bench --out site"),
    (["bench", "--out", "{here}/runs/a"], "bench --out runs/a"),
    (["bench", "--set", "eps=8/255", "plugins/mine.py"], "bench --set eps=8/255 plugins/mine.py"),
    (["bench", "a b"], "bench 'a b'"),
])  # fmt: skip
def test_the_command_is_published_without_folders_of_the_machine(
    project: Path, argv: list[str], expected: str
) -> None:
    assert provenance.command_line([part.format(here=project) for part in argv]) == expected


def test_a_traceback_is_published_without_folders_of_the_machine(project: Path) -> None:
    code = Path(provenance.__file__).parents[1] / "judging" / "judge.py"
    text = (
        f'  File "{code}", line 3, in judge\n'
        f'  File "{HOME}/my env/lib/site-packages/torch/nn/modules/linear.py", line 9\n'
        f"FileNotFoundError: [Errno 2] No such file: '{HOME}/secret/weights.bin' (at 8/255, and/or http://x.org/a/b)"
    )
    assert provenance.without_folders(text) == (
        '  File "bench/judging/judge.py", line 3, in judge\n'
        '  File "torch/nn/modules/linear.py", line 9\n'
        "FileNotFoundError: [Errno 2] No such file: 'weights.bin' (at 8/255, and/or http://x.org/a/b)"
    )


def test_the_record_is_complete_and_its_times_are_utc() -> None:
    record = provenance.finish(provenance.start("bench evaluate"))
    assert record.command == "bench evaluate"
    started, ended = datetime.fromisoformat(record.started), datetime.fromisoformat(record.ended)
    assert started.utcoffset() == timezone.utc.utcoffset(None) and started <= ended
    assert set(record.versions) == {"python", "torch", "torchvision", "numpy", "worst-case-bench"}
    assert set(record.hardware) == {"cpu", "cores", "memory", "accelerator", "platform"}
    assert record.hardware["accelerator"] == "none"
    assert int(record.hardware["cores"]) >= 1


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *names, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkout that pretends to hold this code."""
    try:
        git(tmp_path, "init", "-q")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git is not installed")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "provenance.py").write_text("")
    monkeypatch.setattr(provenance, "_CODE", tmp_path)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "bench" / "provenance.py"))
    provenance.git_state.cache_clear()
    yield tmp_path
    provenance.git_state.cache_clear()


def test_commit_and_dirty_flag_are_those_of_the_code(checkout: Path) -> None:
    (checkout / "results").mkdir()
    (checkout / "results" / "a.json").write_text("1")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "all")
    assert provenance.git_state() == (git(checkout, "rev-parse", "HEAD"), False)

    (checkout / "results" / "a.json").write_text("2")
    provenance.git_state.cache_clear()
    assert provenance.git_state()[1] is False, "results that a run writes do not make its code dirty"

    (checkout / "bench" / "provenance.py").write_text("changed")
    provenance.git_state.cache_clear()
    assert provenance.git_state()[1] is True


def test_code_installed_inside_somebody_elses_checkout_has_no_commit(checkout: Path) -> None:
    (checkout / "other.txt").write_text("")
    git(checkout, "add", "other.txt")
    git(checkout, "commit", "-qm", "not this code")
    assert provenance.git_state() == (None, None)


def test_git_is_asked_once_per_process(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(provenance, "_git", lambda *arguments: calls.append(arguments))
    provenance.finish(provenance.start("a"))
    asked = len(calls)
    provenance.finish(provenance.start("b"))
    assert len(calls) == asked == 1


def test_a_clock_that_is_set_back_in_between_does_not_end_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    class Jumping(datetime):
        hour = iter((12, 9))

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Jumping:
            return cls(2026, 1, 1, next(cls.hour), tzinfo=tz)

    monkeypatch.setattr(provenance, "datetime", Jumping)
    ticks = iter((100.0, 107.0))
    monkeypatch.setattr(provenance.time, "monotonic", lambda: next(ticks))
    record = provenance.finish(provenance.start("bench evaluate"))
    assert (record.started, record.ended) == ("2026-01-01T12:00:00+00:00", "2026-01-01T12:00:07+00:00")
