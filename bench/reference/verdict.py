"""The verdict on the adversarial transformation as a page: ``python -m bench.reference.verdict docs`` writes it.

Beside ``verdict-adversarial-transformation.md`` it writes the plot that the page shows, an SVG.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.reference.markdown import table
from bench.studies.transformation import paper
from bench.studies.transformation.claims import BASES, CLAIMED, RUNGS, Verdict, verdict
from bench.studies.transformation.tables import SUITE, Number, Table, study_command
from bench.summary.columns import percent

ROOT = Path(__file__).parents[2]
PAGE, PLOT = "verdict-adversarial-transformation.md", "verdict-ladder.svg"

_INTRODUCTION = f"""\
# The verdict on the adversarial transformation

<!-- Written by `make docs` from what is published; edits here are lost. -->

**Claimed**: {CLAIMED}; 80.2 % under BPDA. An image is attacked by the defense itself before it is classified:
g takes 13 steps of PGD on an external network f_ext, from a random start, towards the least likely class, within
Δ = 0.2; f classifies what is left.

**Tried here**: f_ext at half the width of the paper's table 4, adversarially trained, and a small f in place of
ResNet-18; Δ, steps and start as in the paper. Up to the paper's tables all numbers are of the first images of the suite
`{SUITE}`, and every sentence is made from them. Brackets are 95 % intervals; ± behind a difference is its standard
error, and what is less than two of these is *not told apart*.
"""


def reference(found: Verdict) -> str:
    """The whole page, Markdown."""
    parts = [
        _INTRODUCTION,
        "## What is left",
        "\n".join(f"- {sentence}" for sentence in found.sentences),
        "## The ladder",
        _ladder(found),
        "## The same input again",
        _tries(found),
        "## Beside what stands without it",
        _against(found),
        _transformation(found),
        "## What the paper reports, number by number",
        "Each cell: the paper's number / the one found. Shares are in per cent.",
        *(_table(one) for one in found.tables),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _ladder(found: Verdict) -> str:
    rows = []
    for one in found.rungs:
        left = percent(one.robust)
        if one.command:
            left = f"not run yet: `{one.command}`" if one.robust is None else f"{left}; rest: `{one.command}`"
        passes = "–" if one.robust is None else f"{one.passes:,.0f}"
        rows.append([f"O{one.number}", RUNGS.get(one.number, ""), f"`{one.name}`", passes, str(one.n), left])
    head = ["Rung", "What it is", "Attack", "Evaluations of g per image", "Images", "Accuracy left, %"]
    plot = f"![Accuracy left by each attack, against evaluations of g per image]({PLOT})" if found.plot else ""
    note = (
        "Evaluations of g are the forward passes of the attack, the comparisons of its own candidates included; those "
        "of o7-guide-alone and o10-white-box-transfer go, but for these, through f_ext or f alone. Attacks on fewer "
        "images leave the clean result on the others in the worst case."
    )
    error = "" if found.judging_error is None else f" The judge's draws add ± {100 * found.judging_error:.1f} points."
    if found.worst is None:
        return "\n\n".join((table(head, rows).strip(), note))
    worst = f"Worst case of all, chosen on some draws and scored on fresh ones: {percent(found.worst)} %.{error}"
    return "\n\n".join(part for part in (plot, table(head, rows).strip(), note, worst) if part)


def _tries(found: Verdict) -> str:
    if not found.tries:
        return f"not run yet: `{found.rungs[0].command}`"
    text = "Accuracy against who sends the worst input k times, and needs one error, from the judge's fresh draws."
    return f"{text}\n\n" + table(
        ["k", *(str(k) for k, _ in found.tries)], [["%", *(f"{100 * left:.1f}" for _, left in found.tries)]]
    )


def _against(found: Verdict) -> str:
    if not found.against:
        return f"not run yet: `{study_command()}`"
    rows = [
        [
            BASES.get(one.name, one.name),
            f"{100 * one.clean:.1f}",
            f"{100 * one.robust:.1f}",
            f"{100 * one.difference:+.1f} ± {100 * one.error:.1f}",
            "–" if one.cost is None else f"{one.cost:.1f}",
        ]
        for one in found.against
    ]
    head = ["", "Clean, %", "Robust, %", "Ours minus this, points", "Time of inference, ours ÷ this"]
    return (
        "The same images, each classifier attacked as one by `cascade`. Adversarial training at equal inference cost "
        "would be a network as many times larger; the one here is not, so its line is a lower bound of what that cost "
        f"buys.\n\n{table(head, rows)}"
    )


def _transformation(found: Verdict) -> str:
    head = "## Where g moves an image (figures 4, 9 and 10)"
    record = found.record
    if record is None:
        return f"{head}\n\nnot run yet: `{study_command()}`"
    text = (
        f"Over {record.draws} draws and {len(record.ids)} images, E[g(x)] is on average {record.mean:.3f} from x per "
        f"value ({record.rms:.3f} root mean square, {record.largest:.3f} at most); table 1 prints "
        f"{paper.DISTANCES['adversarial']:.3f} for an adversarially trained f_ext. The images are on the site."
    )
    if record.fixed_start is not None:
        fixed = record.fixed_start
        own, fresh, clean = 100 * fixed.own, 100 * fixed.fresh, 100 * fixed.clean
        text += (
            f"\n\nWith one start noise for good (O3), {clean:.1f} % clean fall to {own:.1f} % at points made for that "
            f"noise. The same points leave {fresh:.1f} % with fresh noise."
        )
    return f"{head}\n\n{text}"


def _table(one: Table) -> str:
    rows = [[label, *(_cell(number) for number in numbers)] for label, numbers in one.rows]
    lines = "".join(f"- `{each}`\n" for each in one.commands)
    rest = f"\nNot run yet, or in part:\n\n{lines}" if lines else ""
    return f"### {one.title}\n\n{one.note}\n\n{table(['', *one.columns], rows)}{rest}"


def _cell(number: Number) -> str:
    form = "{:.1f}" if number.percent else "{:.3g}"
    printed = "–" if number.paper is None else form.format(number.paper)
    if number.found is None:
        return f"{printed} / not run yet" if number.command else f"{printed} / –"
    interval = "" if number.low is None or number.high is None else f" [{number.low:.1f}, {number.high:.1f}]"
    return f"{printed} / {form.format(number.found)}{interval}{' so far' if number.command else ''}"


def write(folder: Path, results: Path) -> None:
    """Write page and plot."""
    found = verdict(results)
    (folder / PAGE).write_text(reference(found), encoding="utf-8")
    if found.plot:
        (folder / PLOT).write_text(found.plot + "\n", encoding="utf-8")
    else:
        (folder / PLOT).unlink(missing_ok=True)


if __name__ == "__main__":
    write(Path(sys.argv[1]), ROOT / "results")
