"""What every registered defense promises, on small grey and on 32×32 colour images, before and after training."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from attacks.gradient.pgd import pgd
from bench.contracts.defense import Defense, DefenseSpec, in_training_mode
from bench.contracts.detector import Detector, WithDetector
from bench.contracts.inputs import DataInfo, InputSpec
from bench.contracts.seeding import generator, seeded
from bench.contracts.target import Target
from bench.contracts.threat import Lp
from bench.data.load import load_data
from bench.data.splits import Split
from bench.judging.check import check_defense
from bench.plugins.references import resolve
from bench.plugins.registry import DEFENSES
from bench.plugins.resolve import build_defense, trained_as
from bench.storing.checkpoints import checkpoint_path
from bench.suites.reading import load_config
from bench.training.recipe import TrainingRun

ROOT = Path(__file__).resolve().parents[2]
GREY = DataInfo("grey", InputSpec((1, 8, 8)), 10)
COLOUR = DataInfo("colour", InputSpec((3, 32, 32)), 10)
NAMES = DEFENSES.built_in()
EACH = pytest.mark.parametrize("name", NAMES)
DETECTORS = [name for name in NAMES if issubclass(resolve(name), Detector)]  # type: ignore[arg-type]
#: What stands behind a detector there.
SMALL = f"{ROOT}/tests/helpers/small_network.py:Small"
#: What would take minutes on 32×32 images of a CPU; everything else is tested with its defaults.
CHEAPER: dict[str, dict[str, Any]] = {"defense-gan": {"steps": 3, "restarts": 1}, "odds": {"samples": 4}}
INFOS = pytest.mark.parametrize("info", [GREY, COLOUR], ids=lambda info: info.name)


def _make(name: str, info: DataInfo) -> Defense:
    """Untrained; from 32 pixels on with the smallest network, so that a test takes seconds."""
    params: dict[str, Any] = {}
    if info is COLOUR:
        params = {"classifier": SMALL} if name in DETECTORS else {}
        if "network" in inspect.signature(resolve(name)).parameters:  # type: ignore[arg-type]
            params["network"] = "resnet8"
        params |= CHEAPER.get(name, {})
    with seeded("weights"):
        return build_defense(DefenseSpec(name, params), info).eval()


def _images(info: DataInfo, n: int) -> Tensor:
    """Smooth images, on which a codec or a filter behaves as it does on photographs."""
    coarse = torch.rand(n, info.shape[0], 4, 4, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, info.shape[1:], mode="bilinear", align_corners=False)


@EACH
def test_the_card_tells_the_whole_story(name: str) -> None:
    card = build_defense(DefenseSpec(name), GREY).card
    assert card.title and card.family != "unspecified"
    assert card.tags and card.tags[0] in ("deterministic", "randomised")
    sentences = re.split(r"(?<! al)\. (?=[A-Z])", card.summary)
    assert len(sentences) == 5, sentences
    assert all(claim.source for claim in (*card.claims, *card.breaks))
    assert (card.url == "") == (name == "none")


@EACH
@INFOS
def test_the_contract(name: str, info: DataInfo) -> None:
    defense, x = _make(name, info), _images(info, 2)
    with torch.no_grad():
        with seeded("draw"):
            logits = defense(x)
        with seeded("draw"):
            again = defense.classifier(defense.transform(x))
    assert logits.shape == (2, 10)
    assert torch.isfinite(logits).all()
    assert torch.equal(logits, again)
    assert in_training_mode(defense) == []
    assert ("randomised" in defense.card.tags) == defense.randomized


@EACH
def test_it_declares_what_its_results_depend_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    defense = _make(name, GREY)
    assert isinstance(vars(defense.author).get("version"), int), "a class of its own has a version of its own"
    used = []
    encode = Image.fromarray
    monkeypatch.setattr(Image, "fromarray", lambda image: used.append("pillow") or encode(image))
    with torch.no_grad(), seeded("draw"):
        defense(_images(GREY, 16))
    assert defense.depends == tuple(dict.fromkeys(used))


@EACH
def test_the_shipped_checkpoint_passes_the_check(name: str) -> None:
    suite = load_config(ROOT / "bench.yaml").suite("digits")
    broken = [f"{f.rule} {f.detail}" for f in check_defense(DefenseSpec(name), suite) if f.verdict == "fail"]
    assert broken == []
    defense = build_defense(DefenseSpec(name), load_data("digits").info)
    if defense.has_recipe:
        path = checkpoint_path(defense, name, suite.training(load_data("digits")))
        assert path.stat().st_size <= 1_000_000


class _Short(TrainingRun):
    """A training run whose stages last one epoch; knows whether it was asked for its threat model."""

    asked = False

    @property
    def threat(self) -> Lp:
        self.asked = True
        return super().threat

    def minimise(self, *arguments: Any, **settings: Any) -> None:
        super().minimise(*arguments, **{**settings, "epochs": 1, "milestones": ()})


@EACH
def test_it_trains_and_is_attacked_at_32_by_32_in_colour(name: str, tmp_path: Path) -> None:
    defense = _make(name, COLOUR)
    x, y = _images(COLOUR, 4), torch.tensor([0, 1, 2, 3])
    split = Split(x, y, [f"train/{i}" for i in range(4)])
    threat = Lp("linf", 8 / 255)
    before = {key: value.clone() for key, value in defense.state_dict().items()}
    run = _Short(split, split, COLOUR, threat, 0, torch.device("cpu"), tmp_path)
    with seeded("training"):
        defense.fit(run)
    assert run.asked == defense.trains_in_ball
    changed = [key for key, value in defense.state_dict().items() if not torch.equal(value, before[key])]
    if isinstance(defense, WithDetector):
        assert all(key.startswith("detector.") for key in changed), "its classifier has weights of its own"
        assert bool(changed) == any(key.startswith("detector.") for key in before)
    else:
        assert run.stages and changed
    defense.eval()
    assert in_training_mode(defense) == []
    target = Target(
        defense, threat, 2, knowledge="gradient", generator=generator(0), randomized=defense.randomized
    )
    with seeded("attack"):
        x_adv = pgd(target, x[:2], y[:2], steps=1, estimator="identity", rescore=1)
    assert (x_adv - x[:2]).abs().max() <= threat.eps + 1e-6


@pytest.mark.parametrize(
    ("name", "lender"),
    [("jpeg", "none"), ("pixel-deflection", "none"), ("hedge", "madry"), ("anti-adversary", "none"), ("sap", "none")],
)
def test_layers_before_a_network_have_the_weights_of_one_that_exists_at_32_pixels(name: str, lender: str) -> None:
    spec = DefenseSpec(name, {"network": "cnn-a"})
    defense = build_defense(spec, COLOUR)
    other, trained = trained_as(defense, spec)
    assert trained == DefenseSpec(lender, {"network": "cnn-a"})
    shapes = {key: value.shape for key, value in defense.state_dict().items()}
    assert shapes == {key: value.shape for key, value in other.state_dict().items()}
    assert build_defense(DefenseSpec(name), GREY).weights_of is None
