"""A plan as an object for JSON, for programs that read what a run would do."""

from __future__ import annotations

from typing import Any

from bench.running.plan import Plan
from bench.running.progress import Tracker
from bench.storing.current import shard_count


def outline(plan: Plan, workers: int) -> dict[str, Any]:
    """What a plan would run; the same numbers as the lines of ``Plan.describe``.

    Returns:
        ``cells``, each with its shards in all and those to run; ``preparations`` with how many cells share each;
        numbers of jobs; ``expected_seconds`` with so many workers, and ``expected_between`` which two they lie four
        times out of five; both None where no earlier run tells.
    """
    seconds: dict[str, float] = {}
    for name, (cell, _) in plan.shards.items():
        seconds[cell.title] = seconds.get(cell.title, 0.0) + plan.expected[name].seconds
    cells = [
        {
            "defense": cell.opened.name,
            "attack": cell.name,
            "examples": cell.examples,
            "shards": max(shard_count(cell.examples, plan.shard_size), len(cell.pieces)),
            "shards_to_run": len(cell.pieces),
            "expected_seconds": seconds.get(cell.title) or None,
        }
        for cell in plan.cells
    ]
    known = any(one.seconds for one in plan.expected.values())
    expected = Tracker(plan.jobs, workers).estimate if known else None
    return {
        "cells": cells,
        "preparations": {name: len(sharing) for name, sharing in plan.preparations.items()},
        "jobs": len(plan.jobs),
        "workers": workers,
        "expected_seconds": None if expected is None else expected.seconds,
        "expected_between": None if expected is None else [expected.low, expected.high],
    }
