"""``python -m harness``: run the benchmarks and write what they measured into the page (``make bench``)."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest

from .figures import Collector, read
from .page import part, with_part

_BENCHMARKS = Path(__file__).parents[1]


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/benchmarks.md"), show_default=True)
@click.option("--store", type=click.Path(path_type=Path), default=Path("runs/harness.jsonl"), show_default=True,
              help="Measurements are kept here; without ARGUMENTS they are begun anew.")  # fmt: skip
@click.option("--page-only", is_flag=True, help="Measure nothing.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def main(out: Path, store: Path, page_only: bool, arguments: tuple[str, ...]) -> None:
    """Run the benchmarks, with ARGUMENTS of pytest such as -k plan, and write the page."""
    code = 0
    if not page_only:
        options = ["--benchmark-enable", "--benchmark-only", "--benchmark-quiet", "-p", "no:cacheprovider"]
        if not arguments:
            store.unlink(missing_ok=True)
        code = pytest.main([str(_BENCHMARKS), *options, *arguments], plugins=[Collector(store)])
    before = out.read_text(encoding="utf-8") if out.exists() else ""
    written = out.with_name(f"{out.name}.part")
    out.parent.mkdir(parents=True, exist_ok=True)
    written.write_text(with_part(before, part(read(store))), encoding="utf-8")
    written.replace(out)
    click.echo(f"written: {out}")
    sys.exit(code)


if __name__ == "__main__":
    main()
