"""A plugin of somebody else, in two files and with weights of its own, and the commands that submit it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from stand_ins import Ended, plugin, run_bench, write_config

from bench.data.load import load_data

MINE = '''
"""The nearest class mean, read from a file."""

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from bench import Card, Defense
from shapes import flat


class Mine(Defense):
    card = Card(title="Mine", family="means", summary="The nearest class mean.")
    trainable = False

    def __init__(self, data):
        super().__init__(data)
        means = load_file(Path(__file__).with_name("means.safetensors"))["means"]
        layer = nn.Linear(means.shape[1], len(means))
        layer.weight.data, layer.bias.data = 20 * means, -10 * means.square().sum(1)
        self.classifier = nn.Sequential(flat(), layer)


class Dithered(Mine):
    randomized = True

    def transform(self, x):
        import torch

        return x + 0.1 * torch.randn_like(x)


class Learnt(Defense):
    trains_in_ball = False

    def __init__(self, data):
        super().__init__(data)
        self.classifier = nn.Sequential(flat(), nn.Linear(64, data.num_classes))

    def fit(self, run):
        def loss(x, y):
            return nn.functional.cross_entropy(self(x), y)

        run.minimise("classifier", self, loss, epochs=2, batch_size=64, lr=0.2)
'''
SHAPES = '"""A module beside the plugin."""\n\nfrom torch import nn\n\n\ndef flat():\n    return nn.Flatten()\n'
ATTACKS = {
    "step": {"attack": plugin("one_step")},
    "half": {"attack": plugin("one_step"), "fraction": 0.5},
    "large": {"attack": plugin("one_step"), "eps": 1.0},
    "sunday": {"attack": plugin("absent")},
}


def write_plugin(folder: Path) -> Path:
    """``mine.py`` with what it needs."""
    folder.mkdir(parents=True, exist_ok=True)
    train = load_data("digits").train
    means = torch.stack([train.x[train.y == k].mean(0).flatten() for k in range(10)])
    save_file({"means": means}, folder / "means.safetensors")
    (folder / "shapes.py").write_text(SHAPES)
    (folder / "mine.py").write_text(MINE)
    return folder / "mine.py"


def submit(
    folder: Path, out: Path, *more: str, name: str = "Mine", attacks: dict[str, Any] = ATTACKS, **fields: Any
) -> Ended:
    """``bench submit`` of the plugin in ``folder`` on a suite of twelve digits."""
    config = write_config(folder / "bench.yaml", attacks, **fields)
    words = ["--suite", "tiny", "--config", config, "--results", folder / "runs", "--device", "cpu", "--quiet"]
    files = ["--with", folder / "means.safetensors", "--by", "A. Stranger", "--out", out]
    return run_bench("submit", "--defense", f"{folder / 'mine.py'}:{name}", *words, *files, *more)


def remade(bundle: Path, **changes: Any) -> None:
    """Write the manifest anew after a change to the files, as who altered them would; ``changes`` to its fields."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = [
        {
            "path": file.relative_to(bundle).as_posix(),
            "size": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in sorted(bundle.rglob("*"))
        if file.is_file() and file != path
    ]
    path.write_text(json.dumps({**manifest, **changes}))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
