"""How every published number is made again: ``python -m bench.reference.reproduce > docs/reproduce.md``."""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.reference.markdown import table
from bench.running.plan import counted
from bench.studies.input_gradients import record as input_gradients
from bench.studies.losses import record as losses
from bench.studies.transformation import record as transformation
from bench.suites.reading import load_config
from bench.summary.summarise import summarise

ROOT = Path(__file__).parents[2]

_INTRODUCTION = """\
# Reproduce

<!-- Written by `make docs` from what is published; edits here are lost. -->

Every published number comes out of a command below, on a CPU, and is the same on any number of cores: trainings and
attacks compute with one thread each, and all randomness is derived from the suite's seed. Times are those of one core
(worker time), so two cores take half of it; they were measured on shared machines and are rather too long.
Floating-point results may differ between versions of PyTorch; `bench status --results results` says which rows a run
would make again.

`--suite cifar10` needs the images: `--data-root DIR --download` fetches and checks them, `--data folder:DIR` takes a
folder of lossless images under the original names. Digits are on board.
"""

_GPU = """\
## On a GPU

`make gpu` does the paper-scale runs, unattended: it trains `none`, `madry` and `ours` as in Xiao & Zheng 2020
(ResNet-18, the external network of their table 4) and evaluates them under the suite `cifar10-paper` (1000 images,
the budgets of the literature). It stops after `MINUTES=30`, and the next call goes on where it stopped, with the same
numbers. Results go to `runs/`, checkpoints to `runs/checkpoints/`. Nothing of it has been run for what is published
here: all networks above are small ones, and said to be.

```sh
make gpu MINUTES=30 DATA_ROOT=data
```

What changes with a GPU: networks of the papers' size, 1000 examples in place of 500, and black-box attacks with
25,000 queries. The rows of a GPU are rows of their own: `device` is part of their key.

Table 6 of the paper, on Tiny ImageNet, is the suite `tiny-imagenet`, with the options above. It has not been run.

## Images of other sizes

A smoke run trains a small network for one epoch on Fashion-MNIST (where Debian's `dataset-fashion-mnist` puts it) and
on Tiny ImageNet, attacks it, judges the points twice and builds the site, in some 20 seconds each:

```sh
BENCH_TINY_IMAGENET=DIR make test ARGS=tests/smoke
```
"""


def reference(root: Path = ROOT) -> str:
    """The whole page, Markdown, from ``defenses/checkpoints`` and ``results`` below ``root``."""
    parts = [
        _INTRODUCTION,
        "## Weights",
        _weights(root / "defenses" / "checkpoints"),
        "## Results",
        _results(root / "results"),
        "## Studies",
        _studies(root / "results"),
        _GPU.rstrip(),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _weights(folder: Path) -> str:
    """Trainings on digits together, all others one by one."""
    total, count, rows = defaultdict[str, float](float), defaultdict[str, int](int), []
    for path in sorted(folder.glob("*/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        training: dict[str, Any] = record["training"]
        if training["data"] == "digits":
            total["digits"] += training["seconds"]
            count["digits"] += 1
            continue
        defense = training["defense"].partition("(")[0]  # a variant's name says its settings once more
        settings = "".join(f" --set {name}={value}" for name, value in sorted(training["params"].items()))
        half = " --half" if record["size"] < 3 * record["num_parameters"] else ""
        command = f"bench train --suite {_suite_of(training)} --defense {defense}{settings}{half}"
        accuracy = training.get("validation_accuracy")
        epochs = ", ".join(f"{stage['epochs']} of {stage['name']}" for stage in training["stages"])
        rows.append([
            f"`{command}`",
            f"{record['num_parameters']:,}",
            epochs,
            "–" if accuracy is None else f"{100 * accuracy:.1f} %",
            f"{training['seconds'] / 60:.0f} min",
        ])  # fmt: skip
    head = ["Command", "Weights", "Epochs", "Validation accuracy", "Time"]
    digits = f"`bench train --all --suite digits` ({counted(count['digits'], 'training')})"
    return table(head, [[digits, "", "", "", f"{total['digits'] / 60:.0f} min"], *rows])


def _suite_of(training: dict[str, Any]) -> str:
    """The first shipped suite with the data, and the threat model if it had any part, that weights were trained for."""
    threat = training.get("threat")
    for name, suite in load_config().suites.items():
        same = threat is None or (suite.threat_model.norm, suite.threat_model.eps) == (threat["norm"], threat["eps"])
        if suite.data == training["data"] and same:
            return name
    return str(training["data"])


def _results(folder: Path) -> str:
    rows = []
    for path in sorted(folder.glob("*/suite.json")):
        name = path.parent.name
        summary = summarise(folder, name)
        whole = [defense for defense in summary.defenses if defense.complete]
        rows.append([
            f"`bench evaluate --all --suite {name} --results results`",
            f"{len(whole)}",
            f"{len(summary.record.attacks)}",
            f"{len(summary.record.ids)}",
            f"{summary.worker_seconds / 60:.0f} min",
        ])  # fmt: skip
    after = (
        "Then `bench verify --suite NAME --results results` judges every stored input again, and `bench compact` keeps "
        "what is published. With `--defense NAME` in place of `--all` a single row is made."
    )
    head = ["Command", "Defenses", "Attacks", "Examples", "Time"]
    return f"{table(head, rows)}\n\n{after}"


def _studies(folder: Path) -> str:
    """What is measured beside the leaderboard, each command once."""
    made: dict[str, list[str]] = defaultdict(list)
    for path in sorted(folder.glob("*/*/*.json")):
        if path.name in (input_gradients.FILE, losses.FILE, transformation.FILE):
            command = json.loads(path.read_text(encoding="utf-8"))["provenance"]["command"]
            command = re.sub(r"--results \S+", "--results results", re.sub(r"folder:\S+", "folder:DIR", command))
            made[command].append(f"`{path.relative_to(folder)}`")
    return table(["Command", "Written"], [[f"`{command}`", ", ".join(paths)] for command, paths in made.items()])


if __name__ == "__main__":
    sys.stdout.write(reference())
