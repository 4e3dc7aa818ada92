"""Results as text: a table for people, Markdown, CSV or JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pandas as pd
from tabulate import tabulate

from bench.contracts.threat import format_eps
from bench.summary.numbers import AttackSummary, DefenseSummary, Estimate, SuiteSummary

FORMATS = ("table", "csv", "json", "markdown")


def percent(estimate: Estimate | None) -> str:
    """``46.2 [41.6, 50.8]`` in per cent, or ``–``."""
    if estimate is None:
        return "–"
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def headline(summary: SuiteSummary) -> str:
    """One line that says what the numbers are about."""
    record = summary.record
    return (
        f"{record.name}: {record.data}, {len(record.ids)} examples, {record.norm} eps {format_eps(record.eps)}, "
        f"seed {record.seed}. Accuracy in % with 95 % intervals; worst case per example over all attacks: "
        f"an upper bound on robustness. One worker's time for all of it: {summary.worker_seconds / 60:.0f} min."
    )


def overview(summary: SuiteSummary) -> list[dict[str, str]]:
    """One row per defense, formatted."""
    return [
        {
            "rank": str(d.rank) if d.complete else "–",
            "defense": d.record.name,
            "standard": percent(d.standard),
            "worst-case robust": percent(d.worst_case),
            "worst attack": d.worst_attack,
            "detection": detection_accuracy(d),
            "inference": "–" if d.record.timing is None else f"{d.record.timing.ratio:.1f}×",
            "flags": ", ".join(flag.title for flag in d.flags) or "–",
        }
        for d in summary.defenses
    ]


def detection_accuracy(defense: DefenseSummary) -> str:
    """Balanced accuracy of the detector in per cent, or ``–`` without one or without anything to detect."""
    found = defense.detection
    return "–" if found is None or found.accuracy is None else f"{100 * found.accuracy:.1f}"


def matrix(summary: SuiteSummary) -> list[dict[str, str]]:
    """The accuracy that each attack left of each defense, or why there is none; what there is less of in columns."""
    attacks = {
        attack.name: attack.name + ("" if attack.counted else f" (eps {format_eps(attack.eps)}, not counted)")
        for attack in summary.record.attacks
    }
    cells = {d.record.name: {cell.record.name: _left(cell) for cell in d.attacks} for d in summary.defenses}
    if len(cells) > len(attacks):
        return [{"defense": name, **{title: row[a] for a, title in attacks.items()}} for name, row in cells.items()]
    return [{"attack": title, **{name: row[a] for name, row in cells.items()}} for a, title in attacks.items()]


def _left(cell: AttackSummary) -> str:
    text = "–" if cell.robust is None else f"{100 * cell.robust.value:.1f}"
    return text if cell.status == "complete" else f"{text} ({cell.status})"


def long_rows(summary: SuiteSummary) -> list[dict[str, Any]]:
    """One row per number, unrounded, for programs."""

    def row(defense: DefenseSummary, what: str, value: Estimate | None, **more: Any) -> dict[str, Any]:
        numbers = asdict(value) if value else dict.fromkeys(("value", "low", "high", "n"))
        return {
            "suite": summary.record.name,
            "norm": summary.record.norm,
            "eps": more.pop("eps", summary.record.eps),
            "seed": summary.record.seed,
            "defense": defense.record.name,
            "what": what,
            "accuracy": numbers.pop("value"),
            **numbers,
            **more,
        }

    rows = []
    for d in summary.defenses:
        rows.append(row(d, "standard", d.standard, status="complete"))
        rows.append(row(d, "worst-case", d.worst_case, status="complete" if d.complete else "partial"))
        for a in d.attacks:
            budget = json.dumps(a.record.params, sort_keys=True)
            more = {
                "status": a.status,
                "forward": a.mean_forward,
                "backward": a.mean_backward,
                "seconds_per_example": a.seconds_per_example,
                "budget": budget,
            }
            rows.append(row(d, a.record.name, a.robust, eps=a.record.eps, **more))
    return rows


def render(summary: SuiteSummary, form: str) -> str:
    """The summary in one of :data:`FORMATS`."""
    if form == "json":
        return json.dumps({"suite": summary.record.model_dump(mode="json"), "results": long_rows(summary)}, indent=1)
    if form == "csv":
        return pd.DataFrame(long_rows(summary)).to_csv(index=False).rstrip("\n")
    style = "github" if form == "markdown" else "simple"
    parts = [headline(summary)]
    for rows in (overview(summary), matrix(summary)):
        parts.append(tabulate(rows, headers="keys", tablefmt=style, disable_numparse=True))
    return "\n\n".join(parts + [f"warning: {text}" for text in summary.warnings])
