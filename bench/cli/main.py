"""The command line. Exit codes: 0 done, 1 some cells failed (named), 2 wrong input, 130 interrupted."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from bench.contracts.errors import InputError

if TYPE_CHECKING:
    from bench.contracts.defense import DefenseSpec
    from bench.suites.config import Suite

RESULTS = Path("runs")


class _Group(click.Group):
    """Turns the errors a user can meet into one line and exit code 2."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except InputError as error:
            _stop(f"error: {error}", 2)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(0)
        except click.ClickException as error:
            _stop(f"error: {error.format_message()}", 2)
        except (KeyboardInterrupt, click.Abort):
            _stop("interrupted: finished shards are kept; run the same command again to go on", 130)
        except BrokenPipeError:  # the reader of our output has gone, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        sys.exit(code if isinstance(code, int) else 0)


def _stop(message: str, code: int) -> None:
    click.echo(" ".join(message.split()), err=True)
    sys.exit(code)


def _example(*lines: str) -> str:
    """The epilog of a help text."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def _settings(pairs: tuple[str, ...]) -> dict[str, str]:
    params = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--set {pair!r}: expected name=value")
        params[name.replace("-", "_")] = value
    return params


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device is available here (use auto or cpu)")
    return name


def _workers(asked: int | None, device: str) -> int:
    if asked is not None:
        return asked
    return 1 if device == "cuda" else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


@dataclass(frozen=True)
class _Scene:
    """What every command that runs a defense on a suite's data is told."""

    suite: Suite
    device: str
    params: dict[str, str]
    checkpoints: Path | None
    data_root: Path | None

    def spec(self, reference: str) -> DefenseSpec:
        from bench.contracts.defense import DefenseSpec

        return DefenseSpec(reference, self.params, self.checkpoints)

    def specs(self, references: tuple[str, ...], every: bool) -> list[DefenseSpec]:
        """The defenses named by ``--defense``, and with ``--all`` all registered ones, or those of a suite's study."""
        from bench.plugins.registry import DEFENSES
        from bench.suites.config import variants_of

        names, variants = list(references), []
        if every and self.suite.study is not None:
            variants = variants_of(self.suite, self.checkpoints)
        elif every:
            loaded, problems = DEFENSES.load_all()
            for problem in problems:
                click.echo(f"skipped: {problem}", err=True)
            names += loaded
        if not names and not variants:
            raise InputError("no defense given; use --defense NAME (bench list defenses) or --all")
        return [self.spec(name) for name in dict.fromkeys(names)] + variants


_PATH = click.Path(path_type=Path)
_SCENE = (
    click.option("--suite", "suite_name", default="demo", show_default=True, help="A suite of the configuration."),
    click.option("--config", type=_PATH, help="Another bench.yaml."),
    click.option("--data", "data_reference", help="Other data: digits, cifar10, fashion-mnist or folder:PATH."),
    click.option("--data-root", type=_PATH, help="Where downloaded data sets are kept."),
    click.option("--download", is_flag=True, help="Download the data set if it is not there (SHA-256 checked)."),
    click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A parameter of the defense."),
    click.option("--checkpoints", type=_PATH, help="Folder of checkpoints [default: beside the defense's code]."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
)


def _in_a_scene(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a :class:`_Scene` to a command, which gets it as its first argument."""

    @functools.wraps(function)
    def command(
        suite_name: str,
        config: Path | None,
        data_reference: str | None,
        data_root: Path | None,
        download: bool,
        settings: tuple[str, ...],
        checkpoints: Path | None,
        device: str,
        **others: Any,
    ) -> Any:
        from bench.data.sets import load_data
        from bench.suites.config import load_config

        suite = load_config(config).suite(suite_name).with_data(data_reference)
        scene = _Scene(suite, _device(device), _settings(settings), checkpoints, data_root)
        if download:
            load_data(suite.data, data_root, download=True)
        return function(scene, **others)

    for option in reversed(_SCENE):
        command = option(command)
    return command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="worst-case-bench", prog_name="bench")
def main() -> None:
    """Attack every defense by the worst of all attacks adapted to it, and publish what is left."""


@main.command("list", epilog=_example("bench list attacks"))
@click.argument("what", type=click.Choice(["defenses", "attacks", "suites"]))
@click.option("--config", type=_PATH, help="Another bench.yaml (for suites).")
def list_(what: str, config: Path | None) -> None:
    """List what is registered, and where it comes from."""
    from bench.cli.listing import listing

    table, problems = listing(what, config)
    Console().print(table)
    for problem in problems:
        click.echo(f"skipped: {problem}", err=True)


@main.command(epilog=_example("bench check ours", "bench check path/to/mine.py:Mine --suite digits"))
@click.argument("defense")
@_in_a_scene
def check(scene: _Scene, defense: str) -> int:
    """Check the whole contract of DEFENSE in seconds, each rule a plain sentence."""
    from bench.judging.check import check_defense

    console, marks = Console(), {"pass": "[green]✓[/]", "warn": "[yellow]![/]", "fail": "[red]✗[/]"}
    verdicts = []
    for finding in check_defense(scene.spec(defense), scene.suite, scene.device, scene.data_root):
        verdicts.append(finding.verdict)
        console.print(f"{marks[finding.verdict]} {finding.rule}", highlight=False, soft_wrap=True)
        if finding.detail:
            console.print(f"    {finding.detail}", style="dim", highlight=False, markup=False, soft_wrap=True)
    failed, warned = verdicts.count("fail"), verdicts.count("warn")
    console.print(f"{len(verdicts)} rules: {failed} broken, {warned} with a warning.", highlight=False)
    return 2 if failed else 0


@main.command(epilog=_example("bench train --defense ours --suite digits"))
@click.option("--defense", "defenses", multiple=True, help="A defense (repeat for several).")
@click.option("--all", "every", is_flag=True, help="Every defense with a recipe; of a study all variants.")
@_in_a_scene
def train(scene: _Scene, defenses: tuple[str, ...], every: bool) -> int:
    """Train defenses on a suite's data. An interrupted training goes on where it stopped."""
    from bench.training.command import train_all

    specs = scene.specs(defenses, every)
    return train_all(specs, scene.suite, scene.device, scene.data_root, Console(stderr=True))


@main.command(
    epilog=_example("bench evaluate --defense ours", "bench evaluate --defense path/to/mine.py:Mine --suite digits")
)
@click.option("--defense", "defenses", multiple=True, help="A defense: name, file.py:Name or module:attr (repeat).")
@click.option("--all", "every", is_flag=True, help="Every registered defense; of a study all variants.")
@click.option("--attack", "attacks", multiple=True, help="Only this attack of the suite (repeat for several).")
@click.option("--workers", type=click.IntRange(1), help="Worker processes [default: all cores, 1 on a GPU].")
@click.option("--results", type=_PATH, default=RESULTS, show_default=True, help="Results folder.")
@_in_a_scene
def evaluate(
    scene: _Scene,
    defenses: tuple[str, ...],
    every: bool,
    attacks: tuple[str, ...],
    workers: int | None,
    results: Path,
) -> int:
    """Attack defenses with every attack of a suite. The same command again runs only what is missing."""
    import torch

    from bench.running.engine import LocalEngine
    from bench.running.evaluate import Evaluation, Request
    from bench.running.progress import Display
    from bench.storing import provenance
    from bench.summary import report
    from bench.summary.summarise import summarise

    torch.set_num_threads(1)  # as in the workers: the probe and the timing must not depend on the machine's cores
    request = Request(
        suite=scene.suite,
        defenses=scene.specs(defenses, every),
        attacks=attacks,
        results=results,
        device=scene.device,
        data_root=scene.data_root,
        command=provenance.command_line(),
    )
    with LocalEngine(_workers(workers, scene.device)) as engine:
        evaluation = Evaluation(request, engine, Display(Console(stderr=True)))
        for warning in evaluation.warnings:
            click.echo(f"skipped: {warning}", err=True)
        failures = evaluation.run()
    click.echo(report.render(summarise(results, scene.suite.name), "table"))
    for failure in failures:
        click.echo(f"failed: {failure}", err=True)
    return 1 if failures else 0


@main.command(epilog=_example("bench report --suite digits --results results --format markdown"))
@click.option("--format", "form", type=click.Choice(["table", "csv", "json", "markdown"]), default="table")
@click.option("--suite", "suite_names", multiple=True, help="Only this suite [default: all with results].")
@click.option("--results", type=_PATH, default=RESULTS, show_default=True, help="Results folder.")
def report(form: str, suite_names: tuple[str, ...], results: Path) -> None:
    """Print stored results."""
    from bench.storing.store import suites
    from bench.summary import report as reports
    from bench.summary.summarise import summarise

    names = suite_names or suites(results)
    if not names:
        raise InputError(f"no results in {results}; run: bench evaluate --defense ours")
    click.echo("\n\n".join(reports.render(summarise(results, name), form) for name in names))


@main.command(epilog=_example("bench verify --suite digits --results results --defense ours"))
@click.option("--suite", "suite_name", default="demo", show_default=True, help="The suite whose results are checked.")
@click.option("--defense", "defenses", multiple=True, help="Only this defense (repeat) [default: all stored].")
@click.option("--results", type=_PATH, default=RESULTS, show_default=True, help="Results folder.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--data", "data_reference", help="Where the images are here, if the recorded folder is not.")
@click.option("--data-root", type=_PATH, help="Where downloaded data sets are kept.")
@click.option("--checkpoints", type=_PATH, help="Folder of the defenses' checkpoints.")
def verify(
    suite_name: str,
    defenses: tuple[str, ...],
    results: Path,
    device: str,
    data_reference: str | None,
    data_root: Path | None,
    checkpoints: Path | None,
) -> int:
    """Judge stored adversarial inputs again and compare with the stored rows."""
    import torch

    from bench.upkeep.verify import Places
    from bench.upkeep.verify import verify as judge_again

    torch.set_num_threads(1)
    where = Places(data_reference, data_root, checkpoints)
    confirmed = True
    for verdict in judge_again(results, suite_name, defenses, _device(device), where):
        remark = "; ".join(text for text in (verdict.problem, verdict.note) if text)
        line = f"{verdict.defense} × {verdict.attack}: {verdict.different} of {verdict.rows} rows differ"
        click.echo(f"{line} ({remark})" if remark else line)
        confirmed &= verdict.confirmed
    return 0 if confirmed else 1


@main.command(epilog=_example("bench gradients --defense prm --suite digits --results results"))
@click.option("--defense", "defenses", multiple=True, help="A differentiable defense (repeat for several).")
@click.option("--results", type=_PATH, default=RESULTS, show_default=True, help="Results folder.")
@_in_a_scene
def gradients(scene: _Scene, defenses: tuple[str, ...], results: Path) -> None:
    """Measure input gradients per pixel, and accuracy under PGD confined to some pixels."""
    from bench.storing import provenance
    from bench.storing.store import Store
    from bench.studies.input_gradients.measure import measure_and_store

    store = Store(results, scene.suite.name)
    for spec in scene.specs(defenses, False):
        record = measure_and_store(
            store, scene.suite, spec, device=scene.device, root=scene.data_root, command=provenance.command_line()
        )
        agreement = "" if record.iou is None else f"; IoU with the designated pixels {record.iou:.3f}"
        click.echo(f"{spec.name}: {record.n} examples{agreement}")
        for entry in record.accuracies:
            bound = f"{entry.norm} {entry.eps:.3g}"
            click.echo(f"  {entry.pixels} ({entry.changeable} pixels), {bound}: {100 * entry.accuracy:.1f} %")


@main.command(epilog=_example("bench compact --suite digits --results results"))
@click.option("--results", type=_PATH, default=RESULTS, show_default=True, help="Results folder.")
@click.option("--suite", "suite_names", multiple=True, help="Only this suite [default: all with results].")
def compact(results: Path, suite_names: tuple[str, ...]) -> None:
    """Make stored results small enough to be published, in place.

    All rows stay, compressed; of the adversarial inputs of an example, that of its worst attack stays.
    """
    from bench.storing.store import suites
    from bench.upkeep.compact import compact as compact_suite

    names = suite_names or tuple(suites(results))
    if not names:
        raise InputError(f"no results in {results}")
    for name in names:
        for done in compact_suite(results, name):
            line = f"{name}: {done.defense}: {done.before / 2**20:.2f} MiB to {done.after / 2**20:.2f} MiB"
            click.echo(f"{line} ({done.note})" if done.note else line)


@main.command(epilog=_example("bench leaderboard --results results --out site --serve"))
@click.option("--results", type=_PATH, default=RESULTS, show_default=True, help="Results folder.")
@click.option("--out", type=_PATH, default=Path("site"), show_default=True, help="Site folder.")
@click.option("--serve", is_flag=True, help="Serve it on this machine afterwards.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
def leaderboard(results: Path, out: Path, serve: bool, port: int) -> None:
    """Build the static site from stored results."""
    import leaderboard as site

    index = site.build(results, out)
    click.echo(f"The leaderboard is at {index}; open it in a browser ({index.resolve().as_uri()}).")
    if serve:
        site.serve(out, port)


@main.group(epilog=_example("bench new defense my-defense"))
def new() -> None:
    """Write a working plugin folder to start from."""


@new.command("defense", epilog=_example("bench new defense my-defense"))
@click.argument("name")
@click.option("--out", type=_PATH, default=Path(), help="Parent folder [default: here].")
def new_defense(name: str, out: Path) -> None:
    """Write a working defense plugin named NAME."""
    from bench.plugins import scaffold

    click.echo(f"Written to {scaffold.new_defense(name, out)}; its README.md says what to run.")


@new.command("attack", epilog=_example("bench new attack my-attack"))
@click.argument("name")
@click.option("--out", type=_PATH, default=Path(), help="Parent folder [default: here].")
def new_attack(name: str, out: Path) -> None:
    """Write a working attack plugin named NAME."""
    from bench.plugins import scaffold

    click.echo(f"Written to {scaffold.new_attack(name, out)}; its README.md says what to run.")


