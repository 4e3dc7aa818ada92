"""`bench check`: does a defense keep the contract?"""

from __future__ import annotations

import click

from bench.cli.options import defense_argument, isolation_option
from bench.cli.scene import Scene, epilog, in_a_scene, with_changes
from bench.cli.voice import Output, Voice, speaking
from bench.contracts.errors import one_line


@click.command(
    short_help="Check the contract of a defense in seconds.",
    epilog=epilog(
        "bench check ours",
        "bench check path/to/mine.py:Mine --suite digits",
        refuses="wrong input, or a rule is broken",
    )
)
@defense_argument
@isolation_option
@with_changes
@speaking
@in_a_scene
def check(scene: Scene, voice: Voice, defense: str, isolation: str) -> int:
    """Check the whole contract of DEFENSE in seconds, each rule a plain sentence."""
    from bench.judging.check import check_defense

    console = Output(stderr=voice.as_json, quiet=voice.as_json and voice.quiet)
    marks = {"pass": "[green]✓[/]", "warn": "[yellow]![/]", "fail": "[red]✗[/]"}
    findings = []
    for finding in check_defense(scene.spec(defense), scene.suite, scene.device, scene.data_root, isolation):
        findings.append(finding)
        console.print(f"{marks[finding.verdict]} {finding.rule}", highlight=False, soft_wrap=True)
        if finding.detail:
            console.print(f"    {one_line(finding.detail)}", style="dim", highlight=False, markup=False, soft_wrap=True)
    verdicts = [finding.verdict for finding in findings]
    failed, warned = verdicts.count("fail"), verdicts.count("warn")
    console.print(f"{len(verdicts)} rules: {failed} broken, {warned} with a warning.", highlight=False)
    voice.document(
        {"defense": defense, "suite": scene.suite.name, "rules": findings, "broken": failed, "warnings": warned}
    )
    return 2 if failed else 0
