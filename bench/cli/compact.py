"""`bench compact`: stored results made small enough to be published."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.options import results_option, stored_suite_options
from bench.cli.scene import epilog
from bench.cli.voice import Voice, speaking


@click.command(
    epilog=epilog(
        "bench compact --suite digits --results results",
        fails="a stored file cannot be read: it is named, and its defense left alone",
    )
)
@results_option
@stored_suite_options
@speaking
def compact(results: Path, suite_names: tuple[str, ...], voice: Voice) -> int:
    """Make stored results small enough to be published, in place.

    All rows stay, those of a cell in one compressed file; of the adversarial inputs of an example, that of its worst
    attack stays.
    """
    from bench.storing.store import stored_suites
    from bench.upkeep.compact import compact as compact_suite

    code, compacted = 0, []
    for name in stored_suites(results, suite_names):
        for done in compact_suite(results, name):
            line = f"{name}: {done.defense}: {done.before / 2**20:.2f} MiB to {done.after / 2**20:.2f} MiB"
            voice.line(f"{line} ({done.note})" if done.note else line)
            compacted.append({"suite": name, "defense": done.defense, "bytes_before": done.before,
                              "bytes_after": done.after, "note": done.note, "unreadable": done.unreadable})  # fmt: skip
            for text in done.unreadable:
                voice.warn(f"warning: {text}")
                code = 1
    voice.document({"compacted": compacted})
    return code
