"""`bench check`: does a defense keep the contract?"""

from __future__ import annotations

import click
from rich.console import Console

from bench.cli.options import defense_argument, isolation_option
from bench.cli.scene import Scene, example, in_a_scene, with_changes
from bench.contracts.errors import one_line


@click.command(epilog=example("bench check ours", "bench check path/to/mine.py:Mine --suite digits"))
@defense_argument
@isolation_option
@with_changes
@in_a_scene
def check(scene: Scene, defense: str, isolation: str) -> int:
    """Check the whole contract of DEFENSE in seconds, each rule a plain sentence."""
    from bench.judging.check import check_defense

    console, marks = Console(), {"pass": "[green]✓[/]", "warn": "[yellow]![/]", "fail": "[red]✗[/]"}
    verdicts = []
    for finding in check_defense(scene.spec(defense), scene.suite, scene.device, scene.data_root, isolation):
        verdicts.append(finding.verdict)
        console.print(f"{marks[finding.verdict]} {finding.rule}", highlight=False, soft_wrap=True)
        if finding.detail:
            console.print(f"    {one_line(finding.detail)}", style="dim", highlight=False, markup=False, soft_wrap=True)
    failed, warned = verdicts.count("fail"), verdicts.count("warn")
    console.print(f"{len(verdicts)} rules: {failed} broken, {warned} with a warning.", highlight=False)
    return 2 if failed else 0
