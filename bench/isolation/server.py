"""The process that model servers are forked from: it has imported PyTorch and this package, and never a plugin.

``python -m bench.isolation.server FD`` is started by the side that judges, inside bubblewrap at that level, with one
end of a socket. A server so starts in milliseconds, and knows nothing of the servers before it. Nothing here holds
labels, ids, results or the judge.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from bench.contracts.computing import settle
from bench.isolation import wire

_DEATH_SIGNAL, _DUMPABLE = 1, 4
#: What the first gradient of a process imports: some tenths of a second, in a server that may live for one.
_OF_GRADIENTS = ("torch.fx.experimental.symbolic_shapes", "torch.nested._internal.nested_tensor")


def main(descriptor: int) -> None:
    """Serve one judge until it hangs up."""
    control = socket.socket(fileno=descriptor)
    _prepare()
    children: set[int] = set()
    with contextlib.suppress(wire.Gone, wire.Garbage):
        wire.send(control, {"ready": True})
        while True:
            message, files = wire.receive_with_files(control)
            if "fork" in message:
                _import(message["libraries"])
                pid = _fork(message["fork"], files, control)
                children.add(pid)
                for file in files:
                    os.close(file)
                wire.send(control, {"pid": pid})
            else:
                pid = message["end"]
                children.discard(pid)
                wire.send(control, {"how": _end(pid, message["patience"])})
    for pid in children:
        _end(pid)


def _prepare() -> None:
    from bench.isolation import serving  # noqa: F401
    from bench.storing.digest import PACKAGES

    for package in PACKAGES:
        importlib.import_module(package)  # their folders are found now, while they can be listed
    _import(_OF_GRADIENTS)
    settle()
    with contextlib.suppress(AttributeError, OSError):  # not on Linux
        prctl = ctypes.CDLL(None).prctl
        prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        prctl(_DUMPABLE, 0, 0, 0, 0)  # the servers of one defense must not meet in the memory of this process
    gc.collect()
    gc.freeze()


def _import(libraries: Iterable[str]) -> None:
    """Import what servers would import, each of them; where that fails they say so themselves."""
    for library in libraries:
        if library not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(library)
                gc.collect()
                gc.freeze()


def _fork(task: dict[str, Any], files: list[int], control: socket.socket) -> int:
    """Fork one server; ``files``: its own socket, and where its output goes."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        control.close()
        os.setsid()
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        for stream in (1, 2):
            os.dup2(files[1], stream)
        os.close(files[1])
        _serve(task, socket.socket(fileno=files[0]))
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(code)


def _serve(task: dict[str, Any], channel: socket.socket) -> None:
    from bench.isolation.attempts import attempt
    from bench.isolation.confine import confine
    from bench.isolation.serving import serve

    os.environ["TMPDIR"] = task["scratch"]
    os.makedirs(task["scratch"], exist_ok=True)
    os.chdir(task["folder"] if os.path.isdir(task["folder"]) else "/")
    confine(task["level"], [tuple(rule) for rule in task["rules"]], task["scratch"])
    if "attempts" in task:
        wire.send(channel, {"succeeded": attempt(task["attempts"])})
        return
    with contextlib.suppress(wire.Gone):
        serve(channel, sandboxed=task["level"] in ("landlock", "bubblewrap"))


def _end(pid: int, patience: float = 0.0) -> int | None:
    """Kill a server and its session; returns its exit code if it ended by itself, negative for a signal.

    Args:
        patience: seconds that one gets which has hung up already.
    """
    until = time.monotonic() + patience
    ended, status = os.waitpid(pid, os.WNOHANG)
    while not ended and time.monotonic() < until:
        time.sleep(0.01)
        ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(OSError):
                kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) if ended else None


_main: Callable[[int], None] = main

if __name__ == "__main__":
    from bench.isolation.server import main as _main  # not the copy that is called __main__

    _main(int(sys.argv[1]))
