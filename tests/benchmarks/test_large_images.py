"""What 16 images of 224×224 under attack cost on two workers: memory, and how much of the time is not the model's.

``make bench`` measures; ``make test`` leaves this out. The model is a ResNet-18 of 1000 classes in so small a ball that
nobody leaves the batch. Memory is the proportional set size of all processes together, command and server included, at
the highest of samples; time is that of the workers' CPU, beginning with their start.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import elsewhere
import numpy as np
import pytest
import torch
import yaml
from harness.figures import Figure, Note
from processes import cpu_seconds, family, proportional_set_size
from pytest_benchmark.fixture import BenchmarkFixture

N, WORKERS = 16, 2
#: MiB of memory, and the harness's share of the workers' time.
MEMORY_GOAL, SHARE_GOAL = 3072, 0.2
ATTACKS = {
    "noise": {"draws": 2},
    "pgd": {"steps": 10},
    "square": {"queries": 20},
    "autoattack": {"steps": 5, "targets": 2, "queries": 10},
}


def _written(folder: Path) -> list[str]:
    """The images and a suite on them; the command that evaluates the model on it."""
    x, model = elsewhere.images(elsewhere.LARGE, N), elsewhere.resnet18()
    with torch.no_grad():
        y = model(x).argmax(1)
    np.savez(folder / "mine.npz", x=(x * 255).byte().numpy(), y=y, num_classes=1000)
    name = f"{elsewhere.__file__}:resnet18"
    suite = {
        "data": f"file:{folder / 'mine.npz'}", "examples": None, "seed": 1, "shard_size": N // WORKERS,
        "threat_model": {"norm": "linf", "eps": 1e-5}, "reference": name, "attacks": ATTACKS,
    }  # fmt: skip
    (folder / "bench.yaml").write_text(yaml.safe_dump({"suites": {"large": suite}}))
    where = ["--suite", "large", "--config", f"{folder / 'bench.yaml'}", "--results", f"{folder / 'results'}"]
    return ["evaluate", "--defense", name, *where, "--device", "cpu", "--workers", str(WORKERS), "--quiet"]


@pytest.mark.benchmark(group="data")
def test_large_images_need_little_memory_and_little_time_beside_the_model(
    benchmark: BenchmarkFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: Note
) -> None:
    if benchmark.disabled:
        pytest.skip("measured by make bench")
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("needs /proc/PID/smaps_rollup")
    passes = tmp_path / "passes"
    passes.mkdir()
    monkeypatch.setenv("PASSES", str(passes))
    command = _written(tmp_path)
    for path in passes.iterdir():
        path.unlink()
    memory, spent = 0.0, dict[int, float]()

    def run() -> None:
        nonlocal memory
        bench = [sys.executable, "-c", "from bench.cli.main import main; main()"]
        process = subprocess.Popen([*bench, *command], stdout=subprocess.DEVNULL)
        while process.poll() is None:
            pids = family(process.pid)
            memory = max(memory, proportional_set_size(pids))
            spent.update({pid: seconds for pid in pids if (seconds := cpu_seconds(pid)) is not None})
            time.sleep(0.1)
        spent.pop(process.pid)
        assert process.returncode == 0

    benchmark.pedantic(run, rounds=1)
    model = {int(path.name): float(path.read_text()) for path in passes.iterdir() if int(path.name) in spent}
    assert len(model) >= WORKERS
    share = 1 - sum(model.values()) / sum(spent[pid] for pid in model)
    measured(
        Figure(
            "Images of 224×224", "what is not the model's", share,
            "of the workers' processor time, their start included",
            f"{N} images of 3×224×224, ResNet-18 of 1000 classes, {', '.join(ATTACKS)}; {WORKERS} workers",
            f"memory {memory:,.0f} MiB at most, command and server included (goal {MEMORY_GOAL:,})",
            goal=SHARE_GOAL, met=memory <= MEMORY_GOAL,
        )
    )  # fmt: skip
