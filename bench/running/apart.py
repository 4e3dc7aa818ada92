"""A function of a plugin's in a process of its own, which hands back bytes: it cannot reach into the one that judges.

``python -m bench.running.apart FILE`` reads what to do from its input and writes the bytes to the file.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.contracts.errors import InputError, NotApplicable


def apart(function: Callable[..., bytes], *args: Any) -> bytes:
    """``function(*args)``, a function of this project that runs an author's code, elsewhere.

    Raises:
        InputError: with the last line that was said, when it ends without a result.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        ended = subprocess.run(
            [sys.executable, "-m", __name__, str(answer)],
            input=pickle.dumps((function, args)),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        if ended.returncode or not answer.is_file():
            lines = ended.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {ended.returncode}"]
            raise InputError(lines[-1])
        return answer.read_bytes()


def main(answer: Path) -> int:
    """Do what the input says."""
    import torch

    torch.set_num_threads(1)
    function, args = pickle.load(sys.stdin.buffer)
    try:
        answer.write_bytes(function(*args))
    except (InputError, NotApplicable) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
