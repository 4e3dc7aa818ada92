"""``python -m peers``: measure what is missing and write the document (``make compare``)."""

from __future__ import annotations

import fnmatch
from dataclasses import replace
from pathlib import Path

import click
from harness.page import part_of, with_part

from bench.contracts.computing import settle
from bench.storing import provenance

from .comparison import Comparison
from .comparisons import COMPARISONS
from .render import document
from .store import Store, run
from .subjects import provider


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/benchmarks.md"), show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path("runs/peers.jsonl"), show_default=True,
              help="Measurements are kept here; what is in it is not measured again.")  # fmt: skip
@click.option("--data", "cifar", metavar="REFERENCE",
              help="Where CIFAR-10 is: cifar10 or folder:PATH; without it its networks are left out.")  # fmt: skip
@click.option(
    "--only",
    "patterns",
    multiple=True,
    metavar="NAME",
    help="Measure these comparisons only (may contain * and be repeated); the others are shown as stored.",
)
@click.option("--examples", type=click.IntRange(1), help="At most so many test examples, for a quick look.")
@click.option("--quick", is_flag=True, help="Leave out the slow comparisons.")
@click.option("--fresh", is_flag=True, help="Measure again what is stored.")
@click.option("--limit", type=float, default=600, show_default=True,
              help="Seconds of processor time after which one attack of one library is stopped.")  # fmt: skip
@click.option("--list", "listing", is_flag=True, help="Name the comparisons and stop.")
def main(
    out: Path,
    cache: Path,
    cifar: str | None,
    patterns: tuple[str, ...],
    examples: int | None,
    quick: bool,
    fresh: bool,
    limit: float,
    listing: bool,
) -> None:
    """Compare our attacks with those of the public libraries and write the tables."""
    if listing:
        for comparison in COMPARISONS:
            what = f"{comparison.title} ({comparison.examples} examples of {comparison.subject})"
            click.echo(f"{comparison.name:<28}{what}")
        return
    chosen = _chosen(patterns, quick)
    comparisons = [replace(c, examples=min(c.examples, examples or c.examples)) for c in COMPARISONS]
    settle()  # as wherever the harness computes
    clock = provenance.start()
    results = run(
        comparisons,
        provider(cifar),
        Store(cache),
        limit=limit,
        fresh=fresh,
        only_stored=lambda comparison: comparison.name not in chosen,
        progress=lambda line: click.echo(line, err=True),
    )
    part = out.with_name(f"{out.name}.part")
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = part_of(out.read_text(encoding="utf-8")) if out.exists() else None  # what make bench has written there
    part.write_text(with_part(document(comparisons, results, clock, "make compare"), kept), encoding="utf-8")
    part.replace(out)
    click.echo(f"written: {out}")


def _chosen(patterns: tuple[str, ...], quick: bool) -> set[str]:
    def matches(comparison: Comparison) -> bool:
        return not patterns or any(fnmatch.fnmatchcase(comparison.name, pattern) for pattern in patterns)

    unknown = [p for p in patterns if not any(fnmatch.fnmatchcase(c.name, p) for c in COMPARISONS)]
    if unknown:
        raise click.UsageError(f"--only {unknown[0]}: no comparison has such a name (--list names them)")
    return {c.name for c in COMPARISONS if matches(c) and not (quick and c.slow)}


if __name__ == "__main__":
    main()
