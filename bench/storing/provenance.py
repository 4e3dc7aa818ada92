"""Where a file came from: command, times, commit, versions, hardware. No host, user or folder names."""

from __future__ import annotations

import functools
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from bench.storing.records import Provenance

_CODE = Path(__file__).resolve().parents[2]
_PACKAGES = ("torch", "torchvision", "numpy", "worst-case-bench")


@dataclass(frozen=True)
class Clock:
    """A started measurement: the command line, when it began (ISO 8601, UTC), and that by a clock that nobody sets."""

    command: str
    started: str
    since: float


def start(command: str | None = None) -> Clock:
    """Begin: note the time. ``command`` is this process's own command line unless given."""
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Clock(command_line() if command is None else command, started, time.monotonic())


def finish(clock: Clock, device: torch.device | str = "cpu") -> Provenance:
    """End: everything about how and where the work since :func:`start` was done, on ``device``."""
    commit, dirty = git_state()
    # Not what the clock says now: somebody may have set it back.
    ended = datetime.fromisoformat(clock.started) + timedelta(seconds=time.monotonic() - clock.since)
    return Provenance(
        command=clock.command,
        started=clock.started,
        ended=ended.isoformat(timespec="seconds"),
        git_commit=commit,
        git_dirty=dirty,
        versions=versions(),
        hardware=hardware(str(device)),
    )


# -- the command, without the names of folders on this machine ------------------------------------------------


def command_line(argv: list[str] | None = None) -> str:
    """The command line as it can be published (see :func:`without_folders`)."""
    program, *arguments = sys.argv if argv is None else argv
    path = Path(program)
    name = f"python -m {path.parent.name}" if path.name == "__main__.py" else shlex.quote(path.name)
    return " ".join([name, *(shlex.quote(publishable(argument)) for argument in arguments)])


def publishable(argument: str) -> str:
    """An argument with every path in it (``--out=PATH``, ``PATH:Name``, ``folder:PATH``) made publishable."""
    return "".join(
        shorten(part) if part.startswith(("/", "~")) or ".." in Path(part).parts else part
        for part in re.split(r"([=:,])", argument)
    )


def shorten(path: str) -> str:
    """A path relative to the current folder, the code or the installed packages; outside them its last part."""
    full = Path(os.path.normpath(Path.cwd() / Path(path).expanduser()))
    for base in (Path.cwd(), _CODE):
        if full.is_relative_to(base):
            return full.relative_to(base).as_posix()
    for folder in ("site-packages", "dist-packages"):
        if folder in full.parts:
            return "/".join(full.parts[full.parts.index(folder) + 1 :])
    return full.name


def without_folders(text: str) -> str:
    """Text (a traceback, say) in which absolute paths are replaced by what :func:`shorten` makes of them."""
    quoted = re.sub(r'(?<=")/[^"\n]+(?=")', lambda match: shorten(match[0]), text)
    return re.sub(r"(?<![\w./~:])(?:~|/[\w.+@-]+)(?:/[\w.+@-]+)+", lambda match: shorten(match[0]), quoted)


# -- code and machine -----------------------------------------------------------------------------------------


@functools.cache
def git_state() -> tuple[str | None, bool | None]:
    """Commit of the checkout that holds this code, and whether tracked files differ from it (results apart).

    Asked once per process; ``(None, None)`` when the code is not tracked by git or git is absent.
    """
    # Installed inside somebody else's checkout, the code is not tracked by it: that commit would be a lie.
    if _git("ls-files", "--error-unmatch", Path(__file__).relative_to(_CODE).as_posix()) is None:
        return None, None
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results")
    return commit, None if changes is None else bool(changes)


def _git(*arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(_CODE), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result; ``unknown`` where not installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def torch_release() -> str:
    """Major and minor version of torch, ``2.15``: what float operations may depend on."""
    return ".".join(torch.__version__.split(".")[:2])


@functools.cache
def hardware(device: str) -> dict[str, str]:
    """CPU model, usable cores, memory, accelerator (``none`` on the CPU) and platform."""
    is_cuda = device.startswith("cuda")
    return {
        "cpu": _cpu_model(),
        "cores": str(_usable_cores()),
        "memory": f"{_memory_bytes() / 2**30:.0f} GiB" if _memory_bytes() else "unknown",
        "accelerator": torch.cuda.get_device_name(device) if is_cuda else "none",
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file() and (match := re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)):
        return match[1].strip()
    return platform.processor() or "unknown"


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
