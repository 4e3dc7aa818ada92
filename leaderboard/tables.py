"""The downloads beside each table: the same rows as CSV and as JSON."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

from bench.summary.columns import TIER_COLUMNS, cell_columns_in, columns_in, estimate_fields, fields_of
from bench.summary.escaping import csv_field
from bench.summary.numbers import AttackSummary, DefenseSummary, SuiteSummary

Row = dict[str, Any]


def _setting(suite: SuiteSummary) -> Row:
    record = suite.record
    return {"suite": record.name, "data": record.data, "norm": record.norm, "eps": record.eps, "seed": record.seed}


def leaderboard_rows(suite: SuiteSummary) -> list[Row]:
    """One row per defense: the registered columns, shares in [0, 1], times in seconds."""
    return [fields_of(columns_in("files"), defense) | _setting(suite) for defense in suite.defenses]


def curve_rows(suite: SuiteSummary, defense: DefenseSummary) -> list[Row]:
    """The worst case by radius; ``eps`` among the settings is the suite's, ``radius`` that of the row."""
    return [
        {
            "defense": defense.record.name,
            "radius": point.radius,
            **estimate_fields("robust_accuracy", point.robust),
            "complete": defense.complete,
            **_setting(suite),
        }
        for point in defense.curve
    ]


def history_rows(suite: SuiteSummary, defense: DefenseSummary) -> list[Row]:
    """The worst case before any submission and after each, in their order."""
    return [
        {
            "defense": defense.record.name,
            "date": point.date,
            "by": point.by,
            "note": point.note,
            "examples": point.examples,
            **estimate_fields("worst_case_robust_accuracy", point.robust),
            **_setting(suite),
        }
        for point in defense.history
    ]


def tier_rows(suite: SuiteSummary, defense: DefenseSummary) -> list[Row]:
    """The detector's numbers, one row per tier of attacks; none without a detector."""
    tiers = defense.detection.tiers.values() if defense.detection else ()
    return [
        {
            "defense": defense.record.name,
            "tier": tier.tier,
            "attacks": tier.attacks,
            **fields_of(TIER_COLUMNS, tier),
            **_setting(suite),
        }
        for tier in tiers
    ]


def cell_row(suite: SuiteSummary, defense: DefenseSummary, cell: AttackSummary) -> Row:
    """One defense × attack cell with its budget, cost and status."""
    return {
        "defense": defense.record.name,
        "attack": cell.record.name,
        "is_worst": cell.record.name == defense.worst_attack,
        **fields_of(cell_columns_in("files"), cell),
        **_setting(suite),
    }


def _plain(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: both are missing values here."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _field(value: Any) -> Any:
    """One CSV field; a list of names and any other structure as text."""
    value = _plain(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = "; ".join(value)
    elif isinstance(value, (list, dict)):
        value = json.dumps(value, default=str)
    return csv_field(value)


def write_table(stem: Path, rows: list[Row]) -> None:
    """Write ``stem.csv`` and ``stem.json``; an empty table is an empty list and a file without rows."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(rows), indent=1, allow_nan=False, default=str, ensure_ascii=False)
    Path(f"{stem}.json").write_text(text + "\n", encoding="utf-8")
    with Path(f"{stem}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if rows:
            writer.writerow(rows[0])
        writer.writerows([_field(value) for value in row.values()] for row in rows)
