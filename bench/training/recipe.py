"""Training a defense: stages of gradient descent that survive being killed, and a record of how it was done.

A recipe (``Defense.fit``) calls :meth:`TrainingRun.minimise` once per stage. After every epoch the stage's
weights and optimiser state are written to disk. Every epoch seeds the global generators from
(seed, variant, stage, epoch), so no generator state needs to be kept: a run that was killed and continued has
the very weights of one that was not.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from bench.contracts.clock import seconds_spent
from bench.contracts.defense import Defense, DefenseSpec
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from bench.contracts.reporting import report
from bench.contracts.seeding import seeded
from bench.contracts.threat import Lp
from bench.data.splits import Data, Split
from bench.plugins.resolve import borrow_, build_defense
from bench.storing.checkpoints import TrainingSettings, checkpoint_path, round_to_half_, save
from bench.storing.digest import code_digest
from bench.storing.names import readable
from bench.storing.provenance import versions
from bench.storing.store import write_atomically

#: The learning rate is multiplied by this at every milestone.
DECAY = 0.1
#: Batches between two reports of how far a stage is.
_REPORTED = 20
#: Share of the steps over which the learning rate of a cycle rises.
WARM_UP = 0.2

#: How the learning rate changes, and the precision of a stage (see :meth:`TrainingRun.minimise`).
Policy = Literal["steps", "one-cycle"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Progress:
    """One finished epoch.

    Attributes:
        stage: name of the stage; epoch: 1 … ``epochs``.
        loss: mean over the epoch.
        rate: training images per second, inner attacks included.
    """

    stage: str
    epoch: int
    epochs: int
    loss: float
    rate: float


@dataclass
class Stage:
    """A stage as the training record keeps it; ``seconds`` by :func:`seconds_spent`, ``loss`` of the last epoch."""

    name: str
    epochs: int
    seconds: float
    loss: float


@dataclass
class TrainingRun:
    """What a recipe is given.

    Attributes:
        train, validation: splits; a recipe never sees the test split.
        info: name, shape and class count of the data.
        trained_for: the threat model to defend against; None for a recipe that declares ``trains_in_ball = False``.
        seed: every random number of the run derives from it.
        device: where to train; the modules are there already.
        state: folder for the resumable state of each stage.
        identity: whatever must be equal for saved state to be continued; other state is started over.
        progress: called after every epoch.
        stages: those finished so far.
        epoch: of the stage that is running, from 0, for schedules of a recipe's own.
        earlier: seconds of the epochs of runs that were interrupted.
    """

    train: Split
    validation: Split
    info: DataInfo
    trained_for: Lp | None
    seed: int
    device: torch.device
    state: Path
    identity: str = ""
    progress: Callable[[Progress], None] | None = None
    stages: list[Stage] = field(default_factory=list)
    epoch: int = 0
    earlier: float = 0.0

    @property
    def threat(self) -> Lp:
        """The threat model that adversarial training defends against.

        Raises:
            InputError: for a recipe whose defense declares that it does not use it: its checkpoint's name has none.
        """
        if self.trained_for is None:
            raise InputError("training: the recipe uses run.threat, but its defense declares trains_in_ball = False")
        return self.trained_for

    def minimise(
        self,
        stage: str,
        module: nn.Module,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        *,
        epochs: int,
        batch_size: int,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        milestones: Sequence[int] = (),
        optimizer: Literal["sgd", "adam"] = "sgd",
        policy: Policy = "steps",
        average: float = 0.0,
        precision: Precision = "float32",
        augment: Callable[[Tensor], Tensor] | None = None,
        replays: int = 1,
    ) -> None:
        """Train ``module`` in place on shuffled batches, or load it when the stage is already finished.

        Args:
            stage: a name, unique within the recipe.
            module: what is trained: its parameters that require a gradient. It is in training mode while
                ``loss_fn`` is called and in evaluation mode afterwards.
            loss_fn: ``(x, y) -> scalar``.
            epochs, batch_size, lr, momentum, weight_decay: of the optimiser (Adam ignores ``momentum``).
            milestones: epochs after which ``lr`` is multiplied by 0.1.
            optimizer: ``sgd`` or ``adam``.
            policy: ``steps``: the learning rate falls at the milestones; ``one-cycle``: it rises linearly to ``lr``
                over the first fifth of the steps and falls linearly to 0 (Smith & Topin 2018, arXiv:1708.07120).
            average: decay per step of an exponential moving average of weights and batch-norm statistics, which the
                module has in the end (Polyak & Juditsky 1992; in adversarial training Gowal et al. 2020,
                arXiv:2010.03593); 0: none.
            precision: ``bfloat16``: ``loss_fn`` is called under autocast, weights stay float32.
            augment: ``x -> x`` applied to each batch of training images.
            replays: steps in a row on each batch; ``loss_fn`` sees the very same images in each.

        Raises:
            InputError: when the loss stops being finite.
        """
        settings = [stage, epochs, batch_size, lr, momentum, weight_decay, list(milestones), optimizer, replays]
        settings += [policy, average, precision]
        self.identity = hashlib.sha256(json.dumps([self.identity, settings]).encode()).hexdigest()
        parameters = [p for p in module.parameters() if p.requires_grad]
        descent: torch.optim.Optimizer
        if optimizer == "adam":
            descent = torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)
        else:
            descent = torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
        mean = _Average(module, average) if average else None
        saved = _SavedStage(self.state / f"{readable(stage)}.safetensors", self.identity, module, descent, mean)
        done, seconds, loss = saved.load_()
        self.earlier += seconds
        steps = math.ceil(len(self.train) / batch_size) * replays

        def rate(step: int) -> float:
            """The learning rate of a step of the epoch that is running."""
            if policy == "steps":
                return lr * DECAY ** sum(self.epoch >= milestone for milestone in milestones)
            share = (self.epoch * steps + step + 0.5) / (epochs * steps)
            return lr * min(share / WARM_UP, (1 - share) / (1 - WARM_UP))

        def in_precision(x: Tensor, y: Tensor) -> Tensor:
            # Entered anew for every step: autocast keeps the weights that it has cast until it is left.
            with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                return loss_fn(x, y)

        for epoch in range(done, epochs):
            self.epoch = epoch
            started, spent = time.perf_counter(), seconds_spent(self.device)
            module.train()
            with seeded(self.seed, self.info.name, stage, epoch):
                told = partial(_tell, stage, epoch, epochs, len(self.train))
                loss = self._epoch(module, in_precision, descent, batch_size, augment, replays, rate, mean, told)
            module.eval()
            took = time.perf_counter() - started
            seconds += seconds_spent(self.device) - spent
            if not math.isfinite(loss):
                raise InputError(f"training: stage {stage}, epoch {epoch + 1}: the loss became {loss}; lower lr {lr}")
            saved.write(epoch + 1, seconds, loss)
            if self.progress is not None:
                self.progress(Progress(stage, epoch + 1, epochs, loss, len(self.train) / took))
        if mean is not None:
            mean.copy_to_(module)
        module.eval()
        self.stages.append(Stage(stage, epochs, seconds, loss))

    def _epoch(
        self,
        module: nn.Module,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        descent: torch.optim.Optimizer,
        batch_size: int,
        augment: Callable[[Tensor], Tensor] | None,
        replays: int,
        rate: Callable[[int], float],
        mean: _Average | None,
        told: Callable[[int], None],
    ) -> float:
        total = torch.zeros((), device=self.device)
        step = 0
        for number, rows in enumerate(torch.randperm(len(self.train)).split(batch_size)):
            if number and number % _REPORTED == 0:
                told(number * batch_size)
            x, y = self.train.at(rows).to(self.device), self.train.y[rows].to(self.device)
            x = x if augment is None else augment(x)
            for _ in range(replays):
                for group in descent.param_groups:
                    group["lr"] = rate(step)
                step += 1
                loss = loss_fn(x, y)
                descent.zero_grad()
                loss.backward()
                descent.step()
                if mean is not None:
                    mean.update_(module, self.epoch)
            total += loss.detach() * len(rows)
        return total.item() / len(self.train)


def _tell(stage: str, epoch: int, epochs: int, images: int, seen: int) -> None:
    report((epoch + seen / images) / epochs, f"{stage}, epoch {epoch + 1}/{epochs}")


class _Average:
    """A moving average of a module's state; integer buffers are copied.

    It starts with the second epoch: the weights of the first are too far from where they end.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: t.detach().clone() for name, t in module.state_dict().items()}

    @torch.no_grad()
    def update_(self, module: nn.Module, epoch: int) -> None:
        for name, tensor in module.state_dict().items():
            if epoch and tensor.is_floating_point():
                self.state[name].lerp_(tensor, 1 - self.decay)
            else:
                self.state[name].copy_(tensor)

    def copy_to_(self, module: nn.Module) -> None:
        module.load_state_dict(self.state)


@dataclass
class _SavedStage:
    """The state of one stage after its last finished epoch, as one safetensors file."""

    path: Path
    identity: str
    module: nn.Module
    descent: torch.optim.Optimizer
    mean: _Average | None

    def write(self, epoch: int, seconds: float, loss: float) -> None:
        tensors = {f"module.{name}": t for name, t in self.module.state_dict().items()}
        for index, slots in self.descent.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": t for name, t in slots.items() if isinstance(t, Tensor)}
        if self.mean is not None:
            tensors |= {f"average.{name}": t for name, t in self.mean.state.items()}
        whole = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        about = {"identity": self.identity, "epoch": epoch, "seconds": seconds, "loss": loss}
        write_atomically(self.path, safetensors.torch.save(whole, {"about": json.dumps(about)}))

    def load_(self) -> tuple[int, float, float]:
        """Load what was saved; returns finished epochs, their seconds and the last loss (nothing: 0, 0, NaN)."""
        fresh = (0, 0.0, math.nan)
        if not self.path.is_file():
            return fresh
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                about = json.loads((file.metadata() or {}).get("about", "{}"))
                if about.get("identity") != self.identity:
                    return fresh
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, json.JSONDecodeError):
            return fresh
        state = self.descent.state_dict()
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, slot = rest.partition(".")
                state["state"].setdefault(int(index), {})[slot] = tensor
            elif kind == "average" and self.mean is not None:
                self.mean.state[rest] = tensor.to(self.mean.state[rest].device)
        self.module.load_state_dict({n[7:]: t for n, t in tensors.items() if n.startswith("module.")})
        self.descent.load_state_dict(state)
        return about["epoch"], about["seconds"], about["loss"]


@torch.no_grad()
def accuracy(defense: Defense, split: Split, device: torch.device, batch_size: int = 512) -> float:
    """Share of a split that one pass of the defense classifies rightly."""
    right = 0
    for x, y in split.batches(batch_size):
        right += int((defense(x.to(device)).argmax(1).cpu() == y).sum())
    return right / len(split)


def train_defense(
    spec: DefenseSpec,
    data: Data,
    settings: TrainingSettings,
    *,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    half: bool = False,
) -> Path:
    """Train a defense by its own recipe and save its checkpoint; continues a run that was interrupted.

    Args:
        spec: which defense, with which parameters.
        data: trained on ``data.train``; ``data.validation`` gives the accuracy in the record.
        settings: what to train for; the seed decides the initial weights and every random number after them.
        device: where to train.
        folder: of the checkpoints (default: ``spec.checkpoints``, else beside the defense's module).
        progress: called after every epoch.
        half: round the trained weights to float16 and store them so, in half the space; the accuracy in the record is
            that of the rounded ones.

    Returns:
        The path of the checkpoint. The state of unfinished runs lies beside it in ``<name>.unfinished``.

    Raises:
        InputError: when the defense has no recipe, the data have no training images, or training diverges.
    """
    if not len(data.train):
        raise InputError(f"{spec.name}: cannot be trained: {data.info.name} has no training images")
    device, seed = torch.device(device), settings.seed
    with seeded(seed, data.info.name, "initial weights"):
        defense = build_defense(spec, data.info).to(device)
    folder = folder or spec.checkpoints
    path = checkpoint_path(defense, spec.name, settings, folder)
    behind = borrow_(defense, replace(spec, checkpoints=folder), settings)[1].sha256
    identity = settings.identity(defense, spec.name)
    state = path.with_suffix(".unfinished")
    conditions = [
        identity, device.type, torch.__version__, data.train.digest, code_digest(defense), *filter(None, [behind]),
    ]  # fmt: skip
    threat = settings.threat if defense.trains_in_ball else None
    run = TrainingRun(
        data.train, data.validation, data.info, threat, seed, device, state,
        identity=json.dumps(conditions, default=str), progress=progress,
    )  # fmt: skip
    started = seconds_spent(device)
    with seeded(seed, data.info.name, "recipe"):
        defense.fit(run)
    seconds = run.earlier + seconds_spent(device) - started
    defense.eval()
    if half:
        round_to_half_(defense)
    with seeded(seed, data.info.name, "validation"):
        validation = accuracy(defense, data.validation, device)
    save(
        defense,
        path,
        {
            **identity,
            "params": spec.params,
            "examples": len(data.train),
            "device": device.type,
            "seconds": round(seconds, 3),
            "stages": [asdict(stage) for stage in run.stages],
            "validation_accuracy": validation,
            "versions": versions(),
        },
        half=half,
        behind=behind,
    )
    shutil.rmtree(state, ignore_errors=True)
    return path
