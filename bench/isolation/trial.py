"""The self-test of a level: cheats are tried inside, and what came of them is seen from outside."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.isolation.attempts import LABELS, NEIGHBOUR, OUTSIDE, SOCKET
from bench.isolation.nursery import Nursery
from bench.isolation.places import Places

#: Hidden files that the attempt is given at most, and how many files are looked at to find them.
_FILES, _LOOKED_AT = 20, 200


def trial(nursery: Nursery, places: Places) -> list[str]:
    """What a plugin could do at the nursery's level although it must not; empty where the level keeps its word."""
    with _facts(places) as (facts, seen):
        channel = nursery.fork(places, attempts=facts)
        try:
            said = channel.told().get("succeeded")
        finally:
            channel.close()
        succeeded = {str(name) for name in said} if isinstance(said, list) else {LABELS, OUTSIDE, SOCKET, NEIGHBOUR}
        # What it says of itself is not all that is believed.
        if any(os.path.exists(path) for path in facts["outside"]):
            succeeded.add(OUTSIDE)
        if seen():
            succeeded.add(SOCKET)
    return sorted(succeeded)


@contextmanager
def _facts(places: Places) -> Iterator[tuple[dict[str, Any], Any]]:
    secret = secrets.token_bytes(16)
    held = ctypes.create_string_buffer(secret, len(secret))
    mark = f".bench-{secrets.token_hex(8)}"
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        labels = Path(folder) / "labels.json"
        labels.write_text("[0, 1, 2]")
        tcp, abstract = _listening(stack, socket.AF_INET, ("127.0.0.1", 0)), None
        with contextlib.suppress(OSError):
            abstract = _listening(stack, socket.AF_UNIX, f"\0{mark}")
        # Beside what it must not read, and where anybody may write.
        beside = [os.path.dirname(place) for place in places.hidden]
        folders = [folder, *beside, str(Path.home()), str(Path.cwd()), tempfile.gettempdir(), "/var/tmp", "/dev/shm"]
        outside = [os.path.join(path, mark) for path in dict.fromkeys(folders) if os.access(path, os.W_OK | os.X_OK)]
        stack.callback(_remove, outside)
        facts = {
            "labels": [str(labels), *_files(places)],
            "outside": outside,
            "port": tcp.getsockname()[1],
            "name": mark,
            "pid": os.getpid(),
            "address": ctypes.addressof(held),
            "secret": secret.hex(),
        }
        yield facts, lambda: _was_called(tcp) or (abstract is not None and _was_called(abstract))


def _listening(stack: contextlib.ExitStack, family: int, address: Any) -> socket.socket:
    sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
    sock.bind(address)
    sock.listen()
    sock.setblocking(False)
    return sock


def _was_called(sock: socket.socket) -> bool:
    try:
        sock.accept()[0].close()
    except OSError:
        return False
    return True


def _files(places: Places) -> list[str]:
    """A few of the files that must not be read."""
    found: list[str] = []
    for place in places.hidden:
        if os.path.isfile(place):
            found.append(place)
            continue
        walked = (os.path.join(folder, name) for folder, _, names in os.walk(place) for name in sorted(names))
        some = [path for _, path in zip(range(_LOOKED_AT), walked, strict=False) if places.hides(path)]
        found += some[: _FILES // len(places.hidden) + 1]
    return found


def _remove(paths: list[str]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)
