"""A disk that refuses: tried again for a while, then one line."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import pytest

from bench.contracts.errors import InputError
from bench.storing.patience import Patience


def test_what_is_refused_for_a_moment_is_written_in_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    refusals = [OSError(errno.ENOSPC, "No space left on device")] * 3

    def write() -> None:
        if refusals:
            raise refusals.pop()
        (tmp_path / "written").touch()

    with caplog.at_level(logging.WARNING):
        Patience(tmp_path, seconds=60, every=0)(write)
    assert (tmp_path / "written").exists()
    assert [record.getMessage() for record in caplog.records] == [
        f"note: results folder {tmp_path}: No space left on device; trying for 60 s"
    ]


def test_what_is_refused_for_good_is_one_line(tmp_path: Path) -> None:
    def write() -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with pytest.raises(InputError) as stopped:
        Patience(tmp_path, seconds=0)(write)
    assert str(stopped.value) == (
        f"results folder {tmp_path}: Read-only file system; what was stored before is whole, "
        "and the same command goes on from there"
    )
