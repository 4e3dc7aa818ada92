"""Where model servers come from: one process per level and set of files, which forks them, and the door to each."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.contracts.errors import TRACEBACK, InputError, NotApplicable
from bench.contracts.isolation import Level
from bench.isolation import bubblewrap, landlock, wire
from bench.isolation.places import Places

if TYPE_CHECKING:
    from bench.isolation.remote import Companion

#: Seconds that a server may take for one answer, and to start.
ANSWER_SECONDS, START_SECONDS = 600.0, 120.0
#: Bytes of memory that is shared at first; the most that an answer may take.
_SHARED, _LARGEST = 1 << 20, 1 << 33
#: What a server sees of this process's environment.
_ENVIRONMENT = (
    "PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "TORCH_HOME", "HF_HOME",
    "HF_HUB_OFFLINE", "XDG_CACHE_HOME", "HOME", "OMP_NUM_THREADS", TRACEBACK,
)  # fmt: skip


class ServerLost(InputError):
    """A model server died, hung or answered nonsense: what it was asked for fails, in one line."""


def surroundings() -> dict[str, str]:
    """The environment in which a nursery that is started now, and its servers, run."""
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return environment | {"PYTHONPATH": os.pathsep.join(filter(None, _search_path())), "PYTHONDONTWRITEBYTECODE": "1"}


class Nursery:
    """A process from which servers of one level are forked.

    Args:
        places: what it sees itself at the level ``bubblewrap``; elsewhere servers alone are kept from files.

    Raises:
        ServerLost: when it cannot be started.
    """

    def __init__(self, level: Level, places: Places) -> None:
        self.level = level
        self._numbers = itertools.count()
        self._channels: weakref.WeakSet[Channel] = weakref.WeakSet()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as this is)
        # Inside bubblewrap a place of its own; else one that is removed at the end.
        self._scratch = "/scratch" if level == "bubblewrap" else tempfile.mkdtemp(prefix="bench-")
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "bench.isolation.server", str(theirs.fileno())]
        if level == "bubblewrap":
            writable = self._scratch if landlock.version() else None
            command = [*bubblewrap.command(places, self._scratch, writable), *command]
        try:
            self._process = subprocess.Popen(
                command,
                env=surroundings(),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                cwd=None if level == "bubblewrap" else "/",
            )
        except OSError as error:
            raise ServerLost(f"a model server cannot be started: {error}") from None
        finally:
            theirs.close()
        self._control = ours
        ours.settimeout(START_SECONDS)
        self._ask(None)
        atexit.register(self.close)

    @property
    def alive(self) -> bool:
        """Whether servers can be forked."""
        return self._process.poll() is None

    @property
    def busy(self) -> bool:
        """Whether a server of it is still wanted."""
        return any(channel.open for channel in self._channels)

    def close(self) -> None:
        """End it and all its servers."""
        atexit.unregister(self.close)
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()
        self._log.close()
        if self.level != "bubblewrap":
            shutil.rmtree(self._scratch, ignore_errors=True)

    def fork(self, places: Places, libraries: Sequence[str] = (), **task: Any) -> Channel:
        """A new server, which has seen nothing yet, and the channel to it.

        Args:
            places: what it may read; libraries: that it is going to import, none of them a plugin's.
        """
        scratch = os.path.join(self._scratch, str(next(self._numbers)))
        ours, theirs = socket.socketpair()
        output = tempfile.TemporaryFile()  # noqa: SIM115  (the channel's)
        keep = os.dup(2) if os.environ.get(TRACEBACK) else os.dup(output.fileno())
        task |= {"level": self.level, "rules": list(places.rules()), "scratch": scratch, "folder": str(Path.cwd())}
        try:
            pid = self._ask({"fork": task, "libraries": list(libraries)}, (theirs.fileno(), keep))["pid"]
        finally:
            theirs.close()
            os.close(keep)
        channel = Channel(self, ours, pid, output)
        self._channels.add(channel)
        return channel

    def end(self, pid: int, patience: float = 0.0) -> int | None:
        """End a server; the exit code with which it ended by itself within so many seconds, negative for a signal."""
        how = self._ask({"end": pid, "patience": patience})["how"]
        return how if how is None else int(how)

    def _ask(self, message: dict[str, Any] | None, files: tuple[int, ...] = ()) -> dict[str, Any]:
        try:
            if message is not None:
                wire.send(self._control, message, files)
            return wire.receive(self._control)
        except (wire.Gone, wire.Garbage, OSError):
            self._process.kill()
            self._process.wait()
            raise ServerLost(f"a model server cannot be started{_tail(self._log)}") from None


class Channel:
    """The door to one server: questions in, answers out, tensors in shared memory."""

    def __init__(self, nursery: Nursery, sock: socket.socket, pid: int, output: Any) -> None:
        self._nursery, self._socket, self._pid, self._output = nursery, sock, pid, output
        self._memory: dict[str, wire.Memory] = {}
        self._lost = ""
        #: Answers that nobody will differentiate any more.
        self.dropped: list[int] = []
        #: What is asked beside clean inputs (:mod:`bench.isolation.company`).
        self.company: Companion | None = None
        sock.settimeout(ANSWER_SECONDS)

    @property
    def open(self) -> bool:
        """Whether it can be asked."""
        return not self._lost

    def close(self) -> None:
        """End the server."""
        if not self._lost:
            self._end("was ended")

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def told(self) -> dict[str, Any]:
        """What a server says without being asked."""
        try:
            return wire.receive(self._socket)
        except (wire.Gone, wire.Garbage, OSError) as error:
            raise self._failed(error) from None

    def ask(self, message: dict[str, Any], *tensors: Tensor) -> tuple[dict[str, Any], Tensor | None]:
        """Ask, and wait for the answer: what is said, and a tensor where there is one.

        Raises:
            ServerLost: when the server died, does not answer in time, or answers nonsense.
            InputError, NotApplicable, torch.OutOfMemoryError, or another error: what it raised, told again.
        """
        if self._lost:
            raise ServerLost(self._lost)
        files: dict[str, int] = {}
        needed = sum(tensor.numel() * tensor.element_size() + 8 for tensor in tensors)
        for name, size in (("in", needed), ("out", _SHARED)):
            if name not in self._memory or (name == "in" and self._memory[name].size < needed):
                files[name] = self._share(name, size)
        places = self._memory["in"].write({str(i): tensor.detach() for i, tensor in enumerate(tensors)})
        message = {**message, "x": [places[str(i)] for i in range(len(tensors))]}
        if self.dropped:
            message["drop"], self.dropped = self.dropped, []
        said = self._exchange(message, files)
        if "needed" in said:
            size = said["needed"]
            if type(size) is not int or not 0 < size <= _LARGEST:
                raise self._failed(wire.Garbage(f"an answer of {size} bytes"))
            said = self._exchange({"again": True}, {"out": self._share("out", size)})
        if "error" in said:
            raise _told_again(said)
        try:
            return said, self._memory["out"].read(said["y"]) if "y" in said else None
        except wire.Garbage as error:
            raise self._failed(error) from None

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Within it an answer may take as long as the server has CPU time."""
        before = self._socket.gettimeout()
        self._socket.settimeout(None)
        try:
            yield
        finally:
            if not self._lost:
                self._socket.settimeout(before)

    def _share(self, name: str, size: int) -> int:
        if name in self._memory:
            self._memory[name].close()
        self._memory[name] = wire.Memory.new(max(_SHARED, size + size // 4))
        return self._memory[name].file

    def _exchange(self, message: dict[str, Any], files: dict[str, int]) -> dict[str, Any]:
        if files:
            message = {**message, "memory": list(files)}
        try:
            wire.send(self._socket, message, tuple(files.values()))
            return wire.receive(self._socket)
        except (wire.Gone, wire.Garbage, OSError) as error:
            raise self._failed(error) from None

    def _failed(self, error: Exception) -> ServerLost:
        if isinstance(error, TimeoutError):
            why = f"gave no answer within {self._socket.gettimeout():g} s"
        elif isinstance(error, wire.Garbage):
            why = f"answered nonsense ({error})"
        else:
            why = "died"
        tail = _tail(self._output) if why == "died" else ""
        ended = self._end(why, patience=5.0 if why == "died" else 0.0)
        if why == "died" and ended is not None and ended < 0:
            with contextlib.suppress(ValueError):
                why = f"died ({signal.Signals(-ended).name})"
        elif why == "died" and ended:
            why = f"died (exit code {ended})"
        self._lost = f"the defense's model server {why}{tail}"
        return ServerLost(self._lost)

    def _end(self, why: str, patience: float = 0.0) -> int | None:
        self._lost = f"the defense's model server {why}"
        self._socket.close()
        ended = None
        with contextlib.suppress(ServerLost):
            if self._nursery.alive:
                ended = self._nursery.end(self._pid, patience)
        self._output.close()
        for memory in self._memory.values():
            memory.close()
        return ended


def _told_again(said: dict[str, Any]) -> Exception:
    """The error that a server speaks of, to be raised here; its name and text are the plugin's."""
    kind, name, text = (str(said.get(part, "")) for part in ("error", "type", "text"))
    text = _printable(text)[:2000]
    if kind == "memory":
        return torch.OutOfMemoryError(text)
    if kind == "not-applicable":
        return NotApplicable(text)
    if kind == "input":
        return InputError(text)
    named: type[Exception] = type(name[:80] if name.isidentifier() else "Exception", (RuntimeError,), {})
    return named(text)


def _tail(output: Any) -> str:
    """The last line that a process printed, to be put behind a reason."""
    with contextlib.suppress(OSError, ValueError):
        length = output.seek(0, os.SEEK_END)
        output.seek(max(0, length - 4096))
        lines = [line for line in output.read().decode(errors="replace").splitlines() if line.strip()]
        if lines:
            return f": {_printable(lines[-1].strip())[:300]}"
    return ""


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _search_path() -> list[str]:
    """Where Python looks for modules, with what the present folder stands for."""
    root = str(Path(__file__).resolve().parents[2])
    return list(dict.fromkeys([root, *(path for path in sys.path if path and os.path.isabs(path))]))


def packed(request: object) -> Tensor:
    """A request as bytes. (It goes to the server; nothing comes back in this form.)"""
    return torch.frombuffer(bytearray(pickle.dumps(request)), dtype=torch.uint8)
