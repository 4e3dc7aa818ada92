"""Two runs in one results folder: the second is refused, and told who the first is."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.contracts.errors import InputError
from bench.storing.lock import NAME, check_unlocked, writing

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")

_HOLD = """
import sys, time
from pathlib import Path
from bench.storing.lock import writing
with writing(Path(sys.argv[1]), "bench evaluate --all"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Another process that writes ``tmp_path``."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_second_is_told_the_process_and_host_of_the_first(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    who = f"process {holder.pid} on {socket.gethostname()} writes there (bench evaluate --all)"
    for second in (lambda: check_unlocked(tmp_path), lambda: writing(tmp_path, "me").__enter__()):
        with pytest.raises(InputError) as refused:
            second()
        assert str(refused.value) == f"results folder {tmp_path}: {who}; wait until it has ended"


def test_a_killed_process_leaves_no_lock(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / NAME).exists()  # it could not tidy up
    check_unlocked(tmp_path)
    with writing(tmp_path, "next"):
        assert "next" in (tmp_path / NAME).read_text()
    assert not (tmp_path / NAME).exists()


def test_the_age_of_the_file_does_not_matter(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    for moment in (0.0, time.time() + 10**6):  # a clock that has jumped, either way
        os.utime(tmp_path / NAME, (moment, moment))
        with pytest.raises(InputError, match="writes there"):
            check_unlocked(tmp_path)
