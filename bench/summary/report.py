"""Results as text: a table for people, Markdown, CSV or JSON."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
from tabulate import tabulate

from bench.contracts.errors import one_line
from bench.contracts.words import format_eps
from bench.storing.records import AttackRecord, SuiteRecord
from bench.summary.columns import Column, cell_columns_in, columns_in, fields_of
from bench.summary.escaping import csv_field, markdown, table_cell
from bench.summary.numbers import AttackSummary, DefenseSummary, Estimate, SuiteSummary

#: ``what`` of a point of the curve of robust accuracy by radius.
AT_RADIUS = "at_radius"

FORMATS = ("table", "csv", "json", "markdown")


def headline(summary: SuiteSummary) -> str:
    """One line that says what the numbers are about."""
    record = summary.record
    goal = f"towards the {record.towards} class, " if record.towards else ""
    return (
        f"{record.name}: {record.data}, {len(record.ids)} examples, {record.norm} eps {format_eps(record.eps)}, "
        f"{goal}seed {record.seed}. Accuracy in % with 95 % intervals; worst case per example over all attacks: "
        f"an upper bound on robustness. One worker's time for all of it: {summary.worker_seconds / 60:.0f} min."
    )


def overview(summary: SuiteSummary) -> list[dict[str, str]]:
    """One row per defense, formatted."""

    def text(column: Column[DefenseSummary], defense: DefenseSummary) -> str:
        return _named(summary.record, defense) if column.kind == "defense" else column.text(defense)

    return [{column.heading: text(column, d) for column in columns_in("report")} for d in summary.defenses]


def matrix(summary: SuiteSummary) -> list[dict[str, str]]:
    """The accuracy that each attack left of each defense, or why there is none; what there is less of in columns."""
    attacks = {attack.name: _title(summary.record, attack) for attack in summary.record.attacks}
    cells = {
        _named(summary.record, d): {cell.record.name: _left(cell) for cell in d.attacks} for d in summary.defenses
    }
    if len(cells) > len(attacks):
        return [{"defense": name, **{title: row[a] for a, title in attacks.items()}} for name, row in cells.items()]
    return [{"attack": title, **{name: row[a] for name, row in cells.items()}} for a, title in attacks.items()]


def _named(suite: SuiteRecord, defense: DefenseSummary) -> str:
    """A defense's name, and on how many examples it is run where these are not all."""
    remarks = _on_first(suite, suite.examples_run(reference=defense.record.reference))
    return f"{defense.record.name} ({remarks[0]})" if remarks else defense.record.name


def _on_first(suite: SuiteRecord, n: int) -> list[str]:
    return [f"first {n} examples"] if n < len(suite.ids) else []


def _title(suite: SuiteRecord, attack: AttackRecord) -> str:
    remarks = _on_first(suite, suite.examples_run(attack))
    remarks += [] if attack.counted else [f"eps {format_eps(attack.eps)}, not counted"]
    return f"{attack.name} ({'; '.join(remarks)})" if remarks else attack.name


def _left(cell: AttackSummary) -> str:
    text = "–" if cell.robust is None else f"{100 * cell.robust.value:.1f}"
    return text if cell.status == "complete" else f"{text} ({cell.status})"


def long_rows(summary: SuiteSummary) -> list[dict[str, Any]]:
    """One row per number, unrounded, for programs.

    ``what`` is the attack that left this accuracy; or the id of a column, ``standard_accuracy`` or
    ``worst_case_robust_accuracy``; or ``at_radius``, the worst case in a ball of another ``eps``. What a defense has
    one of, such as its rank, stands in each of its rows.
    """
    shown = columns_in("report", "rows")
    accuracies = [column for column in shown if column.kind == "accuracy"]
    others = [column for column in shown if column.kind not in ("accuracy", "defense")]

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
            **fields_of(others, defense),
        }

    rows = []
    for d in summary.defenses:
        for column in accuracies:
            value = column.value(d)
            status = "complete" if d.complete or not column.main else "partial"
            rows.append(row(d, column.id, value if isinstance(value, Estimate) else None, status=status))
        for point in d.curve:
            status = "complete" if d.complete else "partial"
            rows.append(row(d, AT_RADIUS, point.robust, eps=point.radius, status=status))
        for a in d.attacks:
            cost = fields_of(cell_columns_in("report"), a)
            more = {"status": a.status, **cost, "budget": json.dumps(a.record.params, sort_keys=True)}
            rows.append(row(d, a.record.name, a.robust, eps=a.record.eps, **more))
    return rows


def render(summary: SuiteSummary, form: str) -> str:
    """The summary in one of :data:`FORMATS`."""
    return render_all([summary], form)


def render_all(summaries: Sequence[SuiteSummary], form: str) -> str:
    """Several suites in one of :data:`FORMATS`: CSV and JSON are one document, whose rows name their suites."""
    if form == "json":
        return json.dumps(document(summaries), indent=1)
    if form == "csv":
        rows = [row for summary in summaries for row in long_rows(summary)]
        joined = [{name: csv_field(_joined(value)) for name, value in row.items()} for row in rows]
        return pd.DataFrame(joined).to_csv(index=False).rstrip("\n")
    return "\n\n".join(_page(summary, form) for summary in summaries)


def document(summaries: Sequence[SuiteSummary]) -> dict[str, Any]:
    """Several suites as one object for JSON: their records, a row per number, and what is left out."""
    return {
        "suites": [summary.record.model_dump(mode="json") for summary in summaries],
        "results": [row for summary in summaries for row in long_rows(summary)],
        "warnings": [text for summary in summaries for text in remarks(summary)],
    }


def certified(summary: SuiteSummary) -> list[str]:
    """A line for each defense of which something is proven: between which numbers its robust accuracy lies."""
    lines = []
    for defense in summary.defenses:
        spans = [f"{summary.record.norm} {format_eps(one.eps)}: {one.text} % of {one.n}" for one in defense.certified]
        lines += [f"certified to attacked, {defense.record.name}: {'; '.join(spans)}"] if spans else []
    return lines


def smoothed(summary: SuiteSummary) -> list[str]:
    """A line for each noise under which a defense was smoothed: certified accuracy by l2 radius."""
    return [
        f"smoothed by noise of sigma {one.sigma:g}, {defense.record.name}: certified accuracy in % by radius: "
        f"{one.text}; of {one.n} examples, {100 * one.abstained:.1f} % abstained, each wrong with probability "
        f"{one.alpha:g} at most"
        for defense in summary.defenses
        for one in defense.smoothed
    ]


def fallen(summary: SuiteSummary) -> list[str]:
    """A line for each submitted attack that lowered a worst case: from what to what, by whom, and when."""
    return [
        f"submitted attack, {defense.record.name}: worst case {100 * before.robust.value:.1f} % to "
        f"{100 * after.robust.value:.1f} %, by {after.by}, {after.date[:10]}"
        for defense in summary.defenses
        for before, after in itertools.pairwise(defense.history)
    ]


def remarks(summary: SuiteSummary) -> list[str]:
    """What is left out of the summary, and why."""
    return summary.unreadable + summary.warnings


def _page(summary: SuiteSummary, form: str) -> str:
    """What is incomplete comes before the numbers that it may have raised."""
    written, said, style = (table_cell, one_line, "simple") if form == "table" else (markdown, markdown, "github")
    parts = [said(headline(summary))]
    parts += [said(_incomplete(defense)) for defense in summary.defenses if not defense.complete]
    for rows in (overview(summary), matrix(summary)):
        cells = [[written(text) for text in row.values()] for row in rows]
        headers = [written(text) for text in (rows[0] if rows else ())]
        parts.append(tabulate(cells, headers=headers, tablefmt=style, disable_numparse=True))
    parts += [said(line) for line in fallen(summary) + certified(summary) + smoothed(summary)]
    return "\n\n".join(parts + [f"warning: {said(text)}" for text in remarks(summary)])


def _incomplete(defense: DefenseSummary) -> str:
    lacking = "; ".join(attack.lacks for attack in defense.attacks if attack.lacks) or "clean inputs"
    return f"incomplete: {defense.record.name}, whose worst case can only fall, so it has no rank: {lacking}"


def _joined(value: Any) -> Any:
    return "; ".join(value) if isinstance(value, list) else value
