"""Tiny defenses, attacks and jobs whose behaviour is known in advance, and the plumbing to run them.

The classes and functions are also loaded as plugins, by the path of this file.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import Tensor, nn
from written_results import timing_record

from bench.cli.main import main
from bench.contracts.attack import PrepareContext, attack
from bench.contracts.defense import Defense
from bench.contracts.errors import NotApplicable
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.reporting import report
from bench.contracts.target import Target
from bench.data.load import load_data
from bench.engines.graph import Graph, Job, Outcome
from bench.running.cell import run_shard
from bench.storing.reading import read_record
from bench.storing.records import ShardRecord
from bench.storing.store import Store
from bench.training.recipe import TrainingRun

HERE = Path(__file__).resolve()
TINY = DataInfo("tiny", InputSpec((1, 2, 2)), 4)


# -- defenses on 2×2 images, scripted by the images themselves --------------------------------------------------


def picture(value: float = 0.0, score: float = 0.0, nan: float = 0.0) -> Tensor:
    """One image for :class:`Scripted`, shape ``(1, 2, 2)``."""
    return torch.tensor([[[value, score], [nan, 0.0]]])


class _NearestLevel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        levels = (torch.arange(TINY.num_classes) + 0.5) / TINY.num_classes
        logits = -((x[:, 0, 0, 0, None] - levels) ** 2)
        return torch.where(x[:, 0, 1, 0, None] > 0.5, torch.nan, logits)


class Scripted(Defense):
    """Pixel (0,0) in quarters is the predicted class; a bright pixel (1,0) makes every logit NaN."""

    trainable = False

    def __init__(self, data: DataInfo = TINY) -> None:
        super().__init__(data)
        self.classifier = _NearestLevel()


class ScriptedDetector(Scripted):
    """:class:`Scripted` with pixel (0,1) as the detector's score."""

    def detect(self, x: Tensor) -> Tensor:
        return x[:, 0, 0, 1]


class Coin(Defense):
    """Class 0 with the probability that pixel (0,0) says, else class 1; remembers the numbers it drew."""

    randomized = True
    trainable = False

    def __init__(self, data: DataInfo = TINY) -> None:
        super().__init__(data)
        self.drawn: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        u = torch.rand(len(x))
        self.drawn += u.tolist()
        heads = (u < x[:, 0, 0, 0]).float()
        return torch.stack([heads, 1 - heads, *[torch.full_like(u, -1)] * (TINY.num_classes - 2)], 1)


def linear_defense(seed: int = 0, shape: tuple[int, ...] = (1, 2, 2), classes: int = 4) -> Defense:
    """A random linear model, in evaluation mode."""
    defense = Defense(DataInfo("tiny", InputSpec(shape), classes))
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(torch.Size(shape).numel(), classes)
    layer.weight.data = torch.randn(layer.weight.shape, generator=generator)
    layer.bias.data = torch.randn(layer.bias.shape, generator=generator)
    defense.classifier = nn.Sequential(nn.Flatten(), layer)
    return defense.eval()


# -- defenses on digits that need no training -------------------------------------------------------------------


class Means(Defense):
    """The nearest class mean, a linear model: about nine digits in ten are right."""

    trainable = False

    def __init__(self, data: DataInfo, scale: float = 10.0) -> None:
        super().__init__(data)
        train = load_data("digits").train
        means = torch.stack([train.x[train.y == k].mean(0).flatten() for k in range(data.num_classes)])
        layer = nn.Linear(means.shape[1], len(means))
        layer.weight.data, layer.bias.data = 2 * scale * means, -scale * means.square().sum(1)
        self.classifier = nn.Sequential(nn.Flatten(), layer)


class Noisy(Means):
    """:class:`Means` behind Gaussian noise."""

    randomized = True

    def transform(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


class Undeclared(Noisy):
    """Randomised, and silent about it."""

    randomized = False


class Guarded(Means):
    """:class:`Means` with a detector: how much neighbouring pixels differ."""

    def detect(self, x: Tensor) -> Tensor:
        return x.diff(dim=2).abs().mean((1, 2, 3)) + x.diff(dim=3).abs().mean((1, 2, 3))


class Trained(Defense):
    """A linear model with a recipe and a detector: how unsure it is. (Weights: ``bench train``.)"""

    def __init__(self, data: DataInfo) -> None:
        super().__init__(data)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, data.num_classes))

    def detect(self, x: Tensor) -> Tensor:
        return -self(x).softmax(1).amax(1)

    def fit(self, run: TrainingRun) -> None:
        def loss(x: Tensor, y: Tensor) -> Tensor:
            return nn.functional.cross_entropy(self(x), y)

        run.minimise("classifier", self, loss, epochs=3, batch_size=64, lr=0.2)


class Probabilities(Means):
    """:class:`Means` with the softmax left on."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class Rounded(Means):
    """:class:`Means` behind a step function, so that no gradient gets through."""

    def transform(self, x: Tensor) -> Tensor:
        return (x * 15).round() / 15


def training_mode(info: DataInfo) -> nn.Module:
    """A bare model whose author forgot ``eval()``."""
    return nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, info.num_classes)).train()


def wrong_shape(info: DataInfo) -> nn.Module:
    """A bare model with one logit too many."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, info.num_classes + 1)).eval()


# -- attacks ----------------------------------------------------------------------------------------------------


def _ascend(target: Target, x: Tensor, y: Tensor, length: float) -> Tensor:
    z = x.clone().requires_grad_()
    logits = target.defense(z)
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y, reduction="sum"), z)
    return (x + length * grad.sign()).clamp(0, 1)


@attack("one-step", knowledge="gradient", norms=("linf",))
def one_step(target: Target, x: Tensor, y: Tensor, *, fraction: float = 1.0) -> Tensor:
    """One signed gradient step of ``fraction`` · eps."""
    return _ascend(target, x, y, fraction * target.ball.eps)


@attack("outside", knowledge="gradient", norms=("linf",))
def outside(target: Target, x: Tensor, y: Tensor) -> Tensor:
    """A step of twice the radius, on which the judge must refuse most points."""
    return _ascend(target, x, y, 2 * target.ball.eps)


@attack("misshapen", knowledge="decision", norms=("linf",))
def misshapen(target: Target, x: Tensor, y: Tensor) -> Tensor:
    """Images of another size."""
    return x[:, :, :4]


@attack("failing", knowledge="decision", norms=("linf",))
def failing(target: Target, x: Tensor, y: Tensor) -> Tensor:
    """Always raises."""
    raise ArithmeticError("no adversarial example today")


@attack("absent", knowledge="decision", norms=("linf",))
def absent(target: Target, x: Tensor, y: Tensor) -> Tensor:
    """Says that it does not apply."""
    raise NotApplicable("only works on Sundays")


@attack("vandal", knowledge="gradient", norms=("linf",))
def vandal(target: Target, x: Tensor, y: Tensor) -> Tensor:
    """Breaks the defense instead of the examples."""
    for p in target.defense.parameters():
        p.data.zero_()
    return x


@attack("slow", knowledge="decision", norms=("linf",))
def slow(target: Target, x: Tensor, y: Tensor, *, seconds: float = 0.3) -> Tensor:
    """Random points of the ball, at leisure."""
    time.sleep(seconds)
    noise = 2 * target.rand(*x.shape, like=x) - 1
    return (x + target.ball.eps * noise).clamp(0, 1)


@attack("roomy", knowledge="decision", norms=("linf",))
def roomy(target: Target, x: Tensor, y: Tensor, *, room: str) -> Tensor:
    """Random points of the ball; memory runs out where a pass has more rows than the file ``room``, if any, says."""
    fits = int(Path(room).read_text()) if Path(room).exists() else 1000
    noise = 2 * target.rand(*x.shape, like=x) - 1
    if target.batch_size > fits:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return (x + target.ball.eps * noise).clamp(0, 1)


def _means(context: PrepareContext, **_: object) -> dict[str, Tensor]:
    report(0.5, "half of it")
    return {"mean": context.train.x.mean(0)}


def _refuse(context: PrepareContext, **_: object) -> dict[str, Tensor]:
    raise ArithmeticError("nothing to be learnt from this")


@attack("curious", knowledge="gradient", norms=("linf",))
def curious(target: Target, x: Tensor, y: Tensor) -> Tensor:
    """:func:`one_step` on what it is shown, of which it takes note."""
    target.labels(x)
    weights = sum(float(p.detach().abs().sum()) for p in target.defense.parameters())
    target.counts.notes.add(f"rejects {target.rejects}, weights {weights:.3f}")
    return _ascend(target, x, y, target.ball.eps)


@attack("of-data", knowledge="transfer", norms=("linf",), prepare=_means, prepare_scope="data")
def of_data(target: Target, x: Tensor, y: Tensor) -> Tensor:
    """Towards the mean image, which is prepared from the data alone."""
    return x + (target.prepared["mean"] - x).clamp(-target.ball.eps, target.ball.eps)


@attack("of-defense", knowledge="transfer", norms=("linf",), prepare=_means)
def of_defense(target: Target, x: Tensor, y: Tensor) -> Tensor:
    """The same, prepared for each defense."""
    return x + (target.prepared["mean"] - x).clamp(-target.ball.eps, target.ball.eps)


@attack("unprepared", knowledge="transfer", norms=("linf",), prepare=_refuse, prepare_scope="data")
def unprepared(target: Target, x: Tensor, y: Tensor) -> Tensor:
    """Its preparation always fails."""
    return x


# -- jobs for engines -------------------------------------------------------------------------------------------


def square(value: int) -> int:
    return value * value


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def from_to(seconds: float) -> tuple[float, float]:
    """When it started and when it ended, on a clock that all processes share."""
    start = time.time()
    time.sleep(seconds)
    return start, time.time()


def divide(a: int, b: int) -> float:
    return a / b


def run_out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def run_out_of_memory_once(path: str) -> None:
    """Leave a file behind the first time, after which there is memory."""
    if not Path(path).exists():
        Path(path).touch()
        run_out_of_memory()


def visible_gpus(seconds: float) -> str:
    """The GPUs that this process may use."""
    time.sleep(seconds)
    return os.environ.get("CUDA_VISIBLE_DEVICES", "")


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(code: int) -> None:
    os._exit(code)


def report_twice(pause: float) -> None:
    """Say how far it is, rest, say it again."""
    report(0.0, "epoch 0/2")
    time.sleep(pause)
    report(0.5, "epoch 1/2")


def sleep_and_tell(path: str) -> None:
    """Leave the process id in a file and sleep for longer than any test runs."""
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


class SerialEngine:
    """Runs the jobs in this process, one after the other; for tests that are not about processes.

    ``ran`` are the shards, as ``attack/number``; ``jobs`` the names of all jobs.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self.ran: list[str] = []
        self.jobs: list[str] = []

    def __enter__(self) -> SerialEngine:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        graph = Graph(jobs)
        while (job := graph.take()) is not None:
            self.jobs.append(job.name)
            if job.function is run_shard:
                self.ran.append(job.name.rpartition(" × ")[2])
            yield from graph.end(self.outcome(job))

    def outcome(self, job: Job) -> Outcome:
        try:
            return Outcome(job, "ok", job.function(*job.args), "", 0.0)
        except Exception:  # whatever an attack raises
            return Outcome(job, "failed", None, traceback.format_exc(), 0.0)


# -- configurations and results ---------------------------------------------------------------------------------


def plugin(name: str) -> str:
    """The reference of something in this file."""
    return f"{HERE}:{name}"


def write_config(path: Path, attacks: dict[str, Any], **fields: Any) -> Path:
    """A ``bench.yaml`` with the one suite ``tiny``: 12 digits in shards of 4."""
    suite = {
        "data": "digits",
        "examples": 12,
        "threat_model": {"norm": "linf", "eps": 0.2},
        "seed": 3,
        "shard_size": 4,
        "draws": {"select": 5, "report": 10},
        "reference": plugin("Means"),
        "attacks": attacks,
        **fields,
    }
    path.write_text(yaml.safe_dump({"suites": {"tiny": suite}}, sort_keys=False))
    return path


def shards(results: Path, suite: str = "tiny") -> dict[str, ShardRecord]:
    """Every stored shard of a suite by its path below the suite's folder."""
    folder = Store(results, suite).folder
    return {
        str(path.relative_to(folder)): read_record(path, ShardRecord) for path in sorted(folder.glob("*/*/[0-9]*.json"))
    }


def essence(results: Path, suite: str = "tiny") -> dict[str, Any]:
    """What must not depend on when, where and by how many workers a suite was run."""
    return {
        name: record.model_dump(exclude={"provenance", "seconds", "prepare_seconds"})
        for name, record in shards(results, suite).items()
    }


@dataclass(frozen=True)
class Ended:
    """How a command ended, and the jobs it ran (none are known with real workers)."""

    code: int
    out: str
    err: str
    ran: list[str]


def run_bench(*arguments: object, workers: int | None = None, engine: SerialEngine | None = None) -> Ended:
    """Run ``bench`` with these arguments in this process.

    Jobs run here too, and time is not measured, unless a number of worker processes is given.
    """
    engine = engine or SerialEngine()
    for name in [name for name in sys.modules if name.startswith("bench_plugin_")]:
        del sys.modules[name]  # as in a new process
    command = [str(argument) for argument in arguments]
    with pytest.MonkeyPatch.context() as patch:
        if workers is None:
            patch.setattr("bench.engines.local.LocalEngine", lambda _: engine)
            patch.setattr("bench.running.timing.measure", lambda *_, **__: timing_record())
        else:
            command.append(f"--workers={workers}")
        result = CliRunner().invoke(main, command)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ended(result.exit_code, result.stdout, result.stderr, engine.ran)
