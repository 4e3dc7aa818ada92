"""Judge adversarial inputs of any examples of a suite, wherever they come from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.contracts.counting import no_counts
from bench.contracts.defense import Defense
from bench.contracts.threat import Lp
from bench.data.splits import Data
from bench.judging.again import in_a_crowd
from bench.judging.judge import Draws, Judged, Judging, judge
from bench.judging.towards import classes_to_reach
from bench.storing.found import found_key
from bench.storing.keys import Key
from bench.storing.provenance import torch_release
from bench.storing.records import DefenseRecord, SuiteRecord

#: Rows per pass; fixed, since a randomised defense draws batch by batch.
BATCH = 256


@dataclass(frozen=True)
class Points:
    """Adversarial inputs ``x_adv (N, …)`` of the examples ``ids``."""

    ids: list[str]
    x_adv: Tensor


@dataclass(frozen=True)
class JudgedPoints:
    """Rows and the inputs that they speak of, what the rows were made of, and the classes that were to be reached."""

    judged: Judged
    key: Key
    towards: list[int] | None


def judge_points(
    defense: Defense, data: Data, suite: SuiteRecord, record: DefenseRecord, points: Points, seed: int, device: str
) -> JudgedPoints:
    """Judge on the draws that ``seed`` gives; the same seed and points give the same rows.

    Args:
        record: of the defense: its threshold, and whether it is randomised.
        points: of examples that the data set has.
    """
    split = getattr(data, suite.split)
    position = {example: i for i, example in enumerate(split.ids)}
    where = [position[example] for example in points.ids]
    x, y = split.at(where).to(device), split.y[where].to(device)
    key = found_key(suite, record, points.ids, seed, torch=torch_release(), device=torch.device(device).type)
    draws = Draws(key.judging.draws_select, key.judging.draws_report)
    towards = classes_to_reach(
        suite.towards,
        defense,
        x,
        y,
        points.ids,
        seed=suite.seed,
        draws=draws.select,
        name=record.name,
        protocol=suite.protocol,
    )
    threat = Lp(suite.norm, suite.eps, suite.low, suite.high)  # type: ignore[arg-type]
    asked = in_a_crowd(defense, threat)
    judged = judge(
        asked,
        x,
        y,
        points.ids,
        points.x_adv.to(x),
        no_counts(len(x)),
        Judging(
            threat,
            draws,
            record.probe.threshold,
            BATCH,
            stream=key.stream(0),
            towards=towards,
            rounding=suite.protocol > 1,
        ),
    )
    return JudgedPoints(judged, key, None if towards is None else towards.tolist())
