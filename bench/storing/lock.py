"""One run at a time writes a suite's results: the second is told who the first is."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bench.contracts.errors import InputError

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing is locked there
    fcntl = None  # type: ignore[assignment]

#: Beside a suite's results, while somebody writes them.
NAME = ".writing"


@contextmanager
def writing(folder: Path, command: str) -> Iterator[None]:
    """Inside the block nobody else writes ``folder``.

    The system takes the lock back when this process ends, however it ends, so none is ever left behind, and whether
    it is held does not depend on clocks.

    Args:
        command: what the other is told.

    Raises:
        InputError: when another process writes there; names its id, host and command. Also when the system refuses.
    """
    if fcntl is None:
        yield
        return
    path = folder / NAME
    with _locked(path) as file:
        about = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "command": command})
        with contextlib.suppress(OSError):  # on a full disk it holds all the same
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), about.encode())
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # where the folder has become read-only: the file holds nobody up
                path.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[IO[str]]:
    while True:
        with _opened(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"results folder {path.parent}: {_who(file)}; wait until it has ended") from None
            except OSError as error:
                raise InputError(f"results folder {path.parent}: cannot be locked ({error.strerror})") from None
            # The last holder may have removed the file after it was opened here: then this lock is on no file at all.
            if _is_at(file, path):
                yield file
                return


def _opened(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="utf-8")
    except OSError as error:
        raise InputError(f"results folder {path.parent}: cannot be locked ({error.strerror})") from None


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _who(file: IO[str]) -> str:
    file.seek(0)
    try:
        about = json.loads(file.read())
        return f"process {about['pid']} on {about['host']} writes there ({about['command']})"
    except (ValueError, KeyError, TypeError):  # it has only just begun
        return "another process writes there"


def check_unlocked(folder: Path) -> None:
    """Raise :class:`InputError`, as :func:`writing` does, when somebody writes ``folder``. Writes nothing."""
    path = folder / NAME
    if fcntl is None or not path.exists():
        return
    with path.open("r", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"results folder {folder}: {_who(file)}; wait until it has ended") from None
