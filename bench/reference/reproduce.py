"""How every published number is made again: ``python -m bench.reference.reproduce > docs/reproduce.md``."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from bench.plugins.registry import DEFENSES
from bench.reference.markdown import table
from bench.running.plan import counted
from bench.studies.input_gradients import record as input_gradients
from bench.studies.losses import record as losses
from bench.studies.transformation import record as transformation
from bench.suites.config import Suite, variants_of
from bench.suites.reading import load_config
from bench.summary.numbers import DefenseSummary, SuiteSummary
from bench.summary.summarise import summarise

ROOT = Path(__file__).parents[2]

#: Parameters as ``--set`` takes them, in a form that can be a key.
Settings = tuple[tuple[str, str], ...]

_INTRODUCTION = """\
# Reproduce

<!-- Written by `make docs` from what is published; edits here are lost. -->

Everything in `results/` and every checkpoint comes out of a command below, on a CPU, and is the same on any number of
cores: trainings and attacks compute with one thread each, and all randomness is derived from the suite's seed. Times
are those of one core (worker time), so two cores take half of it; they were measured on shared machines and are rather
too long. Floating-point results may differ between versions of PyTorch; `bench status --results results` says which
rows a run would make again. (The comparison with other libraries is made by `make compare`, the page of cheats by
`make cheats`.)

What is there already is left alone: to make it anew, give `bench train` and `bench evaluate` another folder by
`--checkpoints`, and `bench evaluate` by `--results`.

Digits are on board. Of CIFAR-10 the images are needed, below the folder DIR of `--data-root`: `--download` fetches and
checks them, or a folder of lossless images under the original names lies there.
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

Table 6 of the paper, on Tiny ImageNet, is the suite `tiny-imagenet`: `bench train` and `bench evaluate` with
`--suite tiny-imagenet --set network=resnet18 --data-root DIR --download`. It has not been run.

## Images of other sizes

A smoke run trains a small network for one epoch on Fashion-MNIST (where Debian's `dataset-fashion-mnist` puts it) and
on Tiny ImageNet, attacks it, judges the points twice and builds the site, in some 20 seconds each:

```sh
BENCH_TINY_IMAGENET=DIR make test ARGS=tests/smoke
```
"""


_AFTER = """\
A defense that is counted *in part* has not met all the attacks yet. What the rows of a suite prepare together, such as
surrogates, is in the time of each. Then `bench verify --suite SUITE --results results --record` judges every stored
input again, and `bench compact --suite SUITE --results results` keeps what is published."""


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
    """Trainings on digits by the command that does them, all others one by one."""
    together: dict[str, list[float]] = defaultdict(list)
    with_settings: dict[Settings, dict[str, float]] = defaultdict(dict)
    rows = []
    for path in sorted(folder.glob("*/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        training: dict[str, Any] = record["training"]
        defense, settings = training["defense"].partition("(")[0], _settings(training["params"])
        if training["data"] == "digits":
            every = _trained_with_others(training)
            if every is None:
                with_settings[settings][defense] = training["seconds"]
            else:
                together[f"bench train --all --suite {every}"].append(training["seconds"])
            continue
        half = " --half" if record["size"] < 3 * record["num_parameters"] else ""
        command = f"bench train --suite {_suite_of(training)} --defense {defense}{_set(settings)}{half}"
        accuracy = training.get("validation_accuracy")
        epochs = ", ".join(f"{stage['epochs']} of {stage['name']}" for stage in training["stages"])
        rows.append([
            f"`{command}{_images(training['data'])}`",
            f"{record['num_parameters']:,}",
            epochs,
            "–" if accuracy is None else f"{100 * accuracy:.1f} %",
            _minutes(training["seconds"]),
        ])  # fmt: skip
    for settings, seconds in with_settings.items():
        named = "".join(f" --defense {defense}" for defense in sorted(seconds))
        together[f"bench train --suite digits{named}{_set(settings)}"] += seconds.values()
    on_digits = [
        [f"`{command}` ({counted(len(seconds), 'training')})", "", "", "", _minutes(sum(seconds))]
        for command, seconds in sorted(together.items())
    ]
    return table(["Command", "Weights", "Epochs", "Validation accuracy", "Time"], [*on_digits, *rows])


@functools.cache
def _shipped() -> dict[str, Suite]:
    """The suites of bench.yaml, read once for all checkpoints and results."""
    return load_config().suites


def _trained_with_others(training: dict[str, Any]) -> str | None:
    """The suite whose ``--all`` does it: any defense as it is, or a study's variant; None: it has other settings."""
    if not training["params"]:
        return "digits"
    for name, suite in _shipped().items():
        if suite.data == "digits" and training["defense"] in {variant.name for variant in variants_of(suite)}:
            return name
    return None


def _settings(params: dict[str, Any]) -> Settings:
    return tuple((name, str(value)) for name, value in sorted(params.items()))


def _set(settings: Settings) -> str:
    return "".join(f" --set {name}={value}" for name, value in settings)


def _images(data: str) -> str:
    return "" if data == "digits" else " --data-root DIR"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min"


def _suite_of(training: dict[str, Any]) -> str:
    """The first shipped suite with the data, and the threat model if it had any part, that weights were trained for."""
    threat = training.get("threat")
    for name, suite in _shipped().items():
        same = threat is None or (suite.threat_model.norm, suite.threat_model.eps) == (threat["norm"], threat["eps"])
        if suite.data == training["data"] and same:
            return name
    return str(training["data"])


def _results(folder: Path) -> str:
    """A row for each command, and below the table the defenses that its NAME stands for."""
    rows, names = [], []
    for path in sorted(folder.glob("*/suite.json")):
        name = path.parent.name
        summary = summarise(folder, name)
        suite = _shipped().get(name)
        study = suite is not None and suite.study is not None
        groups: dict[Settings, list[DefenseSummary]] = defaultdict(list)
        for defense in summary.defenses:
            groups[() if study else _settings(defense.record.params)].append(defense)
        for settings, defenses in sorted(groups.items()):
            shown = sorted({defense.record.reference for defense in defenses})
            if study or (not settings and set(shown) == set(DEFENSES.built_in())):
                which = "--all"
            else:
                which = f"--defense {shown[0] if len(shown) == 1 else 'NAME'}{_set(settings)}"
            command = f"bench evaluate --suite {name} {which}{_images(summary.record.data)} --results results"
            rows.append([f"`{command}`", *_extent(summary, defenses)])
            if "NAME" in which:
                listed = ", ".join(f"`{each}`" for each in shown)
                names.append(f"- `--suite {name} {which}`: {listed}.")
    head = ["Command", "Defenses", "Attacks", "Examples", "Time"]
    listing = "\n\nNAME is each of these in turn:\n\n" + "\n".join(names) if names else ""
    return f"{table(head, rows)}\n{_AFTER}{listing}"


def _extent(summary: SuiteSummary, defenses: list[DefenseSummary]) -> list[str]:
    """How many defenses, attacks and examples, and one worker's time for them."""
    partial = sum(not defense.complete for defense in defenses)
    in_part = f", {partial} of them in part" if partial < len(defenses) else ", in part"
    detecting = {defense.detection is not None for defense in defenses}
    attacks = sorted({sum(attack.applies_to(one) for attack in summary.record.attacks) for one in detecting})
    examples = sorted({defense.standard.n for defense in defenses})
    return [
        f"{len(defenses)}{in_part if partial else ''}",
        _range(attacks),
        _range(examples),
        _minutes(replace(summary, defenses=defenses).worker_seconds),
    ]


def _range(numbers: list[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _studies(folder: Path) -> str:
    """What is measured beside the leaderboard, each command once, with its time from start to end."""
    made: dict[str, list[tuple[str, timedelta]]] = defaultdict(list)
    for path in _measured(folder):
        provenance = json.loads(path.read_text(encoding="utf-8"))["provenance"]
        command = re.sub(r" --workers \d+| --quiet", "", provenance["command"])
        command = re.sub(r"--data folder:\S+", "--data-root DIR", command)
        command = re.sub(r"--results \S+", "--results results", command)
        took = datetime.fromisoformat(provenance["ended"]) - datetime.fromisoformat(provenance["started"])
        made[command].append((f"`{path.relative_to(folder)}`", took))
    rows = [
        [f"`{command}`", ", ".join(path for path, _ in files), _minutes(max(took for _, took in files).total_seconds())]
        for command, files in made.items()
    ]
    return table(["Command", "Written", "From start to end"], rows)


def _measured(folder: Path) -> Iterable[Path]:
    files = (input_gradients.FILE, losses.FILE, transformation.FILE)
    yield from (path for path in sorted(folder.glob("*/*/*.json")) if path.name in files)
    yield from sorted(folder.glob("*/*/@certified/*.json"))


if __name__ == "__main__":
    sys.stdout.write(reference())
