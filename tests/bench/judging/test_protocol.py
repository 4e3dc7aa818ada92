"""Judge, random streams and the digits' order are what the protocol's version says (tests/fingerprints/protocol.json).

Every stored row was made under a version of the protocol; a change of what follows makes all of them stale.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from fingerprints import Fingerprint, complaint, numbers
from small_bench import Bench
from stand_ins import Coin, ScriptedDetector, picture, plugin

from bench.contracts.counting import Counts
from bench.contracts.seeding import derive_seed, generator, seeded
from bench.contracts.threat import Lp
from bench.data.load import load_data
from bench.judging.judge import Draws, Judging, judge, tally
from bench.storing.keys import PROTOCOL
from bench.storing.records import Row

FILE = "protocol.json"
STREAM = (1, "defense", "attack", 0)


def _columns(rows: list[Row]) -> Fingerprint:
    """The rows of an evaluation by column; distances rounded, all else exact."""
    found: Fingerprint = {}
    for name in Row.model_fields:
        column = [getattr(row, name) for row in rows]
        found[name] = numbers(torch.tensor(column)) if name in ("linf", "l2", "l1") else column
    return found


def _seeds() -> Fingerprint:
    named = [(), (1,), ("1",), STREAM, (*STREAM, "select"), (*STREAM, "report"), ("a", "b"), ("ab",), (0.5, None)]
    with seeded(*STREAM, "optimise"):
        drawn = [*torch.rand(4).tolist(), *np.random.rand(4), *(random.random() for _ in range(4))]  # noqa: NPY002
    return {
        "derived": [derive_seed(*parts) for parts in named],
        "of an attack": numbers(torch.rand(8, generator=generator(*STREAM, "attack"))),
        "of a defense": numbers(torch.tensor(drawn)),
    }


def _verdicts() -> Fingerprint:
    """Of a detector: right, wrong, caught, rejected though right, and each way to break a rule; in three settings."""
    x = torch.stack([picture(0.1, 0.2)] * 7)
    x_adv = x.clone()
    for i, (value, score) in enumerate([(0.1, 0.2), (0.35, 0.2), (0.35, 0.45), (0.1, 0.45), (0.9, 0.2)]):
        x_adv[i, 0, 0, :2] = torch.tensor([value, score])
    x_adv[5, 0, 0, 0], x_adv[6, 0, 0, 0] = -0.01, float("nan")
    y = torch.zeros(7, dtype=torch.int64)
    ids = [f"example/{i}" for i in range(7)]
    counts = Counts(*torch.arange(28).view(4, 7))
    found: Fingerprint = {}
    for name, clean, towards in (("attacked", False, None), ("clean", True, None), ("targeted", False, y + 1)):
        how = Judging(Lp("linf", 0.3), Draws(1, 1), 0.4, 4, STREAM, clean, towards)
        rows = judge(ScriptedDetector().eval(), x, y, ids, x_adv, counts, how).rows
        found |= {f"{name}: {column}": values for column, values in _columns(rows).items()}
    return found


def _draws() -> Fingerprint:
    """Of a coin: the draws of the two streams, batch by batch, and what they are counted as."""
    x = torch.stack([picture(value) for value in (0.1, 0.3, 0.5, 0.7, 0.9)])
    y = torch.zeros(5, dtype=torch.int64)
    coin = Coin().eval()
    found = tally(coin, x, y, 7, None, 8, *STREAM, "report")
    how = Judging(Lp("l2", 1.0), Draws(6, 11), None, 8, STREAM)
    rows = judge(coin, x, y, list("abcde"), x.flip(2), Counts(*torch.zeros(4, 5, dtype=torch.int64)), how).rows
    return {
        "right of 7": found.correct.tolist(),
        "first answers": found.prediction.tolist(),
        "drawn": numbers(torch.tensor(coin.drawn)),
        **_columns(rows),
    }


def _digits() -> Fingerprint:
    data = load_data("digits")
    found: Fingerprint = {"classes": data.class_names, "shape": list(data.info.shape)}
    for name in ("train", "validation", "test"):
        split = getattr(data, name)
        found[f"{name}: first"] = split.ids[:10]
        found[f"{name}: ids"] = hashlib.sha256("\n".join(split.ids).encode()).hexdigest()
        found[f"{name}: labels"] = hashlib.sha256(bytes(split.y.tolist())).hexdigest()
        found[f"{name}: images"] = numbers(split.x)
    return found


@pytest.mark.parametrize("part", [_seeds, _verdicts, _draws], ids=["seeds", "verdicts", "draws"])
def test_the_fingerprint_is_that_of_the_protocol(part, request: pytest.FixtureRequest) -> None:
    assert complaint(FILE, request.node.callspec.id, PROTOCOL, part()) == ""


def test_the_fingerprint_of_a_whole_run_is_that_of_the_protocol(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "work").configure({"points": {"attack": plugin("slow"), "seconds": 0}})
    assert bench.evaluate("Noisy").code == 0
    for attack in ("points", "clean"):
        rows = [row for record in bench.cell(attack, "stand_ins.Noisy") for row in record.rows]
        assert len(rows) == 12
        assert complaint(FILE, f"run, {attack}", PROTOCOL, _columns(rows)) == ""


def test_the_order_of_the_digits_is_that_of_their_version() -> None:
    assert complaint(FILE, "digits", load_data("digits").version, _digits()) == ""


@pytest.mark.parametrize(("path", "changed", "part", "named"), [
    ("bench.contracts.seeding.derive_seed", lambda *parts: len(parts), _draws, "draws"),
    ("bench.contracts.threat.Lp.tolerance", 1.0, _verdicts, "verdicts"),
])  # fmt: skip
def test_another_protocol_under_the_same_version_is_noticed(
    monkeypatch: pytest.MonkeyPatch, path: str, changed, part, named: str
) -> None:
    monkeypatch.delenv("WRITE_FINGERPRINTS", raising=False)
    monkeypatch.setattr(path, changed)
    assert f"{named}: behaves differently under the same version {PROTOCOL}" in complaint(FILE, named, PROTOCOL, part())
