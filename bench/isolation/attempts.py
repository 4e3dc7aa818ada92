"""What a cheat would try, tried at the start of every run: by how it ends a level is believed, or not."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

#: What is tried, in the words of a message.
LABELS, OUTSIDE, SOCKET, NEIGHBOUR = "read the labels", "write outside", "open a socket", "read a neighbour's memory"


def attempt(facts: dict[str, Any]) -> list[str]:
    """Try everything; returns what succeeded. Run inside, where a plugin would run.

    Args:
        facts: ``labels``: files that must not be read; ``outside``: files that must not be written; ``port`` and
            ``name``: where the other side listens, on TCP and on an abstract socket; ``pid``, ``address`` and
            ``secret``: a process, and what lies where in its memory, in hexadecimal.
    """
    tries: dict[str, Callable[[], bool]] = {
        LABELS: lambda: any(_reads(path) for path in facts["labels"]),
        OUTSIDE: lambda: sum(map(_writes, facts["outside"])) > 0,
        SOCKET: lambda: _connects(facts["port"], facts["name"]),
        NEIGHBOUR: lambda: _sees(facts["pid"], facts["address"], bytes.fromhex(facts["secret"])),
    }
    return [name for name, succeeds in tries.items() if _quietly(succeeds)]


def _quietly(succeeds: Callable[[], bool]) -> bool:
    try:
        return succeeds()
    except (OSError, ValueError):
        return False


def _reads(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return bool(file.read(1))
    except OSError:
        return False


def _writes(path: str) -> bool:
    try:
        with open(path, "xb") as file:
            file.write(b"x")
    except OSError:
        return False
    return True


def _connects(port: int, name: str) -> bool:
    wanted: Sequence[tuple[int, Any]] = ((socket.AF_INET, ("127.0.0.1", port)), (socket.AF_UNIX, f"\0{name}"))
    for family, address in wanted:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                sock.settimeout(1)
                sock.connect(address)
                return True
        except OSError:
            continue
    return False


def _sees(pid: int, address: int, secret: bytes) -> bool:
    return _by_call(pid, address, len(secret)) == secret or _by_file(pid, address, len(secret)) == secret


class _Piece(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _by_call(pid: int, address: int, length: int) -> bytes:
    found = ctypes.create_string_buffer(length)
    here, there = _Piece(ctypes.addressof(found), length), _Piece(address, length)
    libc = ctypes.CDLL(None, use_errno=True)
    one = ctypes.c_ulong(1)
    read = libc.process_vm_readv(pid, ctypes.byref(here), one, ctypes.byref(there), one, ctypes.c_ulong(0))
    return found.raw if read == length else b""


def _by_file(pid: int, address: int, length: int) -> bytes:
    try:
        with open(f"/proc/{pid}/mem", "rb", 0) as file:
            file.seek(address)
            return os.read(file.fileno(), length)
    except OSError:
        return b""
