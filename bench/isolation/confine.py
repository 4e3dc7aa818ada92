"""What a model server does to itself before it imports a plugin."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence

from bench.contracts.isolation import Level
from bench.isolation import landlock, seccomp

#: Seconds of CPU time of one server; bytes of one file that it writes; open files.
CPU_SECONDS, FILE_BYTES, OPEN_FILES = 48 * 3600, 1 << 28, 1024
#: Share of the machine's memory that one server may have for itself.
MEMORY_SHARE = 0.75
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")


def limit() -> None:
    """Bound memory, CPU time, the size of files and their number, for this process and all that it starts."""
    memory = int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * MEMORY_SHARE)
    for what, most in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def confine(level: Level, rules: Sequence[tuple[str, bool]], scratch: str) -> None:
    """Take from this process what its level does not grant; there is no way back.

    Args:
        rules: see :meth:`bench.isolation.places.Places.rules`; scratch: the one folder that it may write to.

    Raises:
        OSError: where the kernel lacks what the level needs.
    """
    limit()
    if level == "landlock" or (level == "bubblewrap" and landlock.version()):
        devices = [(path, landlock.DEVICE) for path in _DEVICES]
        devices += [(f"/dev/{name}", landlock.DEVICE) for name in os.listdir("/dev") if name.startswith("nvidia")]
        landlock.restrict(
            [
                *((path, landlock.READ if whole else landlock.LIST) for path, whole in rules),
                ("/proc", landlock.READ),  # of other processes it shows what Landlock lets through: names, no memory
                (scratch, landlock.WRITE),
                *devices,
            ]
        )
    if level in ("landlock", "bubblewrap"):
        seccomp.restrict()
