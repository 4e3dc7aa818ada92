"""`bench submit` and `bench submit-attack`: a folder that somebody else can check and add to results."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli.engines import Opener, on_an_engine
from bench.cli.options import (
    PATH,
    config_option,
    data_root_option,
    isolation_option,
    results_option,
    suite_option,
)
from bench.cli.scene import Scene, epilog, in_a_scene
from bench.cli.voice import Voice, speaking
from bench.contracts.computing import settle

_BY = click.option("--by", default="", help="Who submits it: shown on the site.")
_NOTE = click.option("--note", default="", help="What there is to say, such as a paper: shown on the site.")


@click.command(
    short_help="Check, evaluate and pack a defense to be submitted.",
    epilog=epilog("bench submit --defense mine.py:Mine --suite digits --by 'A. Author' --out mine-on-digits")
)
@click.option("--defense", metavar="NAME", required=True, help="A defense: name, file.py:Name or module:attr.")
@click.option("--out", type=PATH, required=True, help="The folder to write; it must not exist.")
@click.option("--with", "extra", type=PATH, multiple=True, help="A further file that its code reads (repeat).")
@results_option
@_BY
@_NOTE
@isolation_option
@on_an_engine
@speaking
@in_a_scene
def submit(
    scene: Scene,
    voice: Voice,
    defense: str,
    out: Path,
    extra: tuple[Path, ...],
    results: Path,
    by: str,
    note: str,
    isolation: str,
    open_engine: Opener,
) -> int:
    """Check, evaluate and verify a defense, and write a folder that can be submitted.

    Results that are there already are used; the same command again goes on where it stopped.
    """
    from bench.submissions.submit import Submission, submit_defense

    settle()
    who = (out, by, note, scene.device, scene.data_root, isolation)
    asked = Submission(scene.suite, scene.spec(defense), extra, results, *who)
    with open_engine(scene.device) as engine:
        made, claimed = submit_defense(asked, engine, voice.display())
    size = sum(entry.size for entry in made.files)
    voice.line(
        f"{out}: {made.defense} on {made.suite}, worst case {100 * claimed.worst_case:.1f} % of "
        f"{claimed.examples} examples; {len(made.files)} files, {size / 1e6:.1f} MB"
    )
    voice.document({"folder": out, "suite": made.suite, "defense": made.defense, "worst_case": claimed.worst_case,
                    "examples": claimed.examples, "files": len(made.files), "bytes": size})  # fmt: skip
    return 0


@click.command(
    "submit-attack",
    short_help="Pack adversarial inputs to be submitted.",
    epilog=epilog("bench submit-attack --suite digits --defense madry --images x_adv.safetensors --by ME --out found"),
)
@suite_option(help="The suite in whose results the defense is.")
@click.option("--defense", metavar="NAME", required=True, help="The defense, by its name in the results.")
@click.option("--images", type=PATH, required=True, help="Safetensors with x_adv, or a folder of PNGs.")
@click.option("--out", type=PATH, required=True, help="The folder to write; it must not exist.")
@_BY
@_NOTE
@config_option
@data_root_option
@speaking
def submit_attack(
    suite_name: str,
    defense: str,
    images: Path,
    out: Path,
    by: str,
    note: str,
    config: Path | None,
    data_root: Path | None,
    voice: Voice,
) -> int:
    """Write adversarial inputs that somebody has found as a folder that can be submitted."""
    from bench.submissions.points import PointsSubmission, submit_points
    from bench.suites.reading import load_config

    suite = load_config(config).suite(suite_name)
    made, count = submit_points(PointsSubmission(suite, defense, images, out, by, note, data_root))
    voice.line(f"{out}: {count} adversarial inputs for {made.defense} on {made.suite}")
    voice.document({"folder": out, "suite": made.suite, "defense": made.defense, "inputs": count})
    return 0
