"""The paper's tables and figures, number by number, beside what a results folder holds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.contracts.errors import InputError
from bench.studies.transformation import paper
from bench.studies.transformation.record import Transformation
from bench.suites.config import Suite
from bench.suites.reading import load_config
from bench.summary.numbers import DefenseSummary, Estimate, SuiteSummary
from bench.summary.summarise import summarise

#: The suite of the ladder, and the defense that it is made for.
SUITE, DEFENSE = "ours-ladder", "ours"
#: Entries of the ladder in place of the attacks of table 2, and those that count as BPDA.
_TABLE_2 = {"transfer": "o10-transfer-clean", "hopskipjump": "o11-hopskipjump", "genattack": "o11-genattack"}
_BPDA = ("o2-", "o4-")


@dataclass(frozen=True)
class Number:
    """A number of the paper beside that found, or the command for it.

    Attributes:
        paper: None: not printed, or lost in the text at hand.
        found: None: not run yet; low, high: 95 % interval of a share.
        command: what runs it, or the attacks that a worst case still lacks.
        percent: False for a ratio or a distance.
    """

    paper: float | None
    found: float | None = None
    low: float | None = None
    high: float | None = None
    command: str = ""
    percent: bool = True


@dataclass(frozen=True)
class Table:
    """Rows of the paper beside those found."""

    title: str
    note: str
    columns: list[str]
    rows: list[tuple[str, list[Number]]]

    @property
    def commands(self) -> list[str]:
        """What runs all that is missing."""
        return sorted({number.command for _, numbers in self.rows for number in numbers if number.command})


@functools.cache
def written(suite: str) -> Suite:
    """A shipped suite; read once, since each of the page's many commands asks for one."""
    return load_config().suites[suite]


def command(suite: str, attack: str = "", defense: str = DEFENSE) -> str:
    """What makes the missing results of a suite; of a study all its variants."""
    which = "--all" if written(suite).study is not None or not defense else f"--defense {defense}"
    images = "" if written(suite).data == "digits" else " --data-root DIR"
    return f"bench evaluate --suite {suite} {which}{f' --attack {attack}' if attack else ''}{images} --results results"


def study_command() -> str:
    """What makes the record of the study."""
    return (
        f"bench study transformation --suite {SUITE} --defense {DEFENSE} --beside madry --beside none "
        "--data-root DIR --results results"
    )


def stored(results: Path, suite: str) -> SuiteSummary | None:
    """The summary of a suite, None where nothing of it can be read."""
    try:
        return summarise(results, suite)
    except InputError:
        return None


def defense_in(suite: SuiteSummary | None, name: str) -> DefenseSummary | None:
    """A defense of a suite, if it has results."""
    return None if suite is None else next((d for d in suite.defenses if d.record.name == name), None)


def tables(
    results: Path, ladder: SuiteSummary | None, record: Transformation | None, worst: Estimate | None = None
) -> list[Table]:
    """Tables 1, 2, 3, 5 and 6, figures 5 to 7, and the costs; ``worst``: of ours on the images that count."""
    cifar = stored(results, "cifar10")
    return [
        _by_variant(results, "ours-external", "Table 1: by the training of the external network", _DIGITS, True),
        _table_2(cifar, ladder),
        _of_methods("Table 3: CIFAR-10, worst case", paper.TABLE_3, cifar, ladder, "cifar10", worst),
        _table_5(),
        _by_variant(results, "ours-steps", "Figure 5 and table 5: by the steps of g", f"{_DIGITS} {_FIGURE[5]}"),
        _by_variant(results, "ours-radius", "Figure 6: by the radius Δ", f"{_DIGITS} {_FIGURE[6]}"),
        _by_variant(results, "ours-samples", "Figure 7: by the draws of EOT", f"{_DIGITS} {_FIGURE[7]}"),
        _figure_8(cifar),
        _of_methods("Table 6: Tiny ImageNet", paper.TABLE_6, stored(results, "tiny-imagenet"), None, "tiny-imagenet"),
        _costs(record),
    ]


_DIGITS = "The paper: CIFAR-10; here: the 8×8 digits at linf 0.2, whose images and networks are far smaller."
_FIGURE = {number: f"Of the figure: “{text}”" for number, text in paper.FIGURES.items()}


def _number(printed: float | None, found: Estimate | None, missing: str, rest: str = "") -> Number:
    """``rest``: what runs attacks that a worst case still lacks."""
    if found is None:
        return Number(printed, command=missing)
    return Number(printed, 100 * found.value, 100 * found.low, 100 * found.high, rest)


def _left(defense: DefenseSummary | None, attack: str) -> Estimate | None:
    """Accuracy under one attack; the clean one under ``clean``."""
    if defense is None:
        return None
    if attack == "clean":
        return defense.standard
    return next((cell.robust for cell in defense.attacks if cell.record.name == attack), None)


def _by_variant(results: Path, name: str, title: str, note: str, distance: bool = False) -> Table:
    """A study: clean accuracy and every attack, variant by variant."""
    suite, planned = stored(results, name), written(name)
    assert planned.study is not None
    study = None if suite is None else suite.record.study
    names = {} if study is None else {variant.label: variant.defense for variant in study.variants}
    attacks, rows = ["clean", *planned.attacks], []
    for variant in planned.study.variants:
        defense = defense_in(suite, names.get(variant.label, ""))
        numbers = [
            _number(variant.published.get(attack), _left(defense, attack), command(name)) for attack in attacks
        ]
        if distance:
            found = None if defense is None else defense.record.probe.transform_distance
            numbers.append(
                Number(paper.DISTANCES[variant.label], found, command="" if found else command(name), percent=False)
            )
        rows.append((variant.label, numbers))
    return Table(title, note, attacks + ["distance of E[g(x)] from x"] * distance, rows)


def _table_2(cifar: SuiteSummary | None, ladder: SuiteSummary | None) -> Table:
    columns, rows = ["clean", *_TABLE_2], []
    for row in paper.TABLE_2:
        numbers = []
        for column, printed in zip(columns, row.numbers, strict=True):
            found = _left(defense_in(cifar, row.defense), column)
            missing = command("cifar10", defense=row.defense)
            if found is None and row.defense == DEFENSE:
                found = _left(defense_in(ladder, DEFENSE), _TABLE_2.get(column, column))
                missing = command(SUITE)
            numbers.append(_number(printed, found, missing))
        rows.append((row.label, numbers))
    return Table("Table 2: CIFAR-10, black box", "Small networks here, ResNet-18 in the paper.", columns, rows)


def _of_methods(
    title: str, printed: Sequence[paper.Printed], suite: SuiteSummary | None, ladder: SuiteSummary | None, name: str,
    worst: Estimate | None = None,
) -> Table:  # fmt: skip
    """Clean and worst accuracy of each method. That of ours is from the ladder, where that is there."""
    rows = []
    for row in printed:
        ours = row.defense == DEFENSE and ladder is not None
        defense = defense_in(ladder if ours else suite, row.defense)
        missing = command(SUITE if ours else name, defense=row.defense)
        found = None if defense is None else (_bpda(defense) if "BPDA" in row.label else defense.worst_case)
        rest = "" if defense is None or defense.complete else missing
        if ours and worst is not None and "BPDA" not in row.label:
            found = worst
        clean, least = row.numbers
        numbers = [_number(clean, _left(defense, "clean"), missing), _number(least, found, missing, rest)]
        rows.append((f"{row.label}, best: {row.best}", numbers))
    note = "The paper's best attack is named; here it is the worst of all that have been run."
    return Table(title, note, ["clean", "worst case"], rows)


def _bpda(defense: DefenseSummary) -> Estimate | None:
    """The attack with BPDA gradients that leaves the least, of those on the most images."""
    left = [
        cell.robust
        for cell in defense.attacks
        if cell.robust is not None and (cell.record.name.startswith(_BPDA) or cell.record.name.startswith("bpda"))
    ]
    return min(left, key=lambda one: (-one.n, one.value), default=None)


def _table_5() -> Table:
    columns = ["clean", *(f"transfer, column {i}" for i in (1, 2, 3))]
    rows = [(f"row {i}", [Number(value) for value in row]) for i, row in enumerate(paper.TABLE_5, 1)]
    note = (
        "As printed. The step counts of rows and columns are lost in the text at hand, so no number here is set beside "
        "one of these; the next table has transfer from fewer steps."
    )
    return Table("Table 5: transfer from models of fewer steps, CIFAR-10", note, columns, rows)


def _figure_8(cifar: SuiteSummary | None) -> Table:
    found = _left(defense_in(cifar, DEFENSE), "reparameterization")
    missing = command("cifar10", "reparameterization")
    rows = [("accuracy under reparameterization", [_number(paper.REPARAMETERIZED, found, missing)])]
    return Table("Figure 8 and appendix A.2: reparameterization", _FIGURE[8], ["CIFAR-10"], rows)


def _costs(record: Transformation | None) -> Table:
    """Training and inference time, as multiples of those without a defense and of adversarial training."""

    def seconds(name: str) -> float | None:
        if record is None:
            return None
        base = record.base(name)
        return record.seconds if name == DEFENSE else (None if base is None else base.seconds)

    def training(name: str) -> float | None:
        if record is None:
            return None
        base = record.base(name)
        return record.training_seconds if name == DEFENSE else (None if base is None else base.training_seconds)

    def ratio(what: Callable[[str], float | None], over: str) -> float | None:
        own, other = what(DEFENSE), what(over)
        return None if own is None or not other else own / other

    def numbers(printed: dict[str, float], what: Callable[[str], float | None]) -> Iterable[Number]:
        for over in ("none", "madry"):
            found = ratio(what, over)
            yield Number(
                printed[DEFENSE] / printed[over], found, command="" if found else study_command(), percent=False
            )

    note = (
        "Ratios. The paper: 82, 56 and 460 minutes for 80 epochs of one network; 17, 4 and 4 s for 10,000 images. "
        "Here the trainings differ in epochs (docs/reproduce.md has them), and that of ours includes the external "
        "network's; inference was measured in one run, in turn."
    )
    rows = [
        ("training", list(numbers(paper.TRAINING, training))),
        ("inference", list(numbers(paper.INFERENCE, seconds))),
    ]
    return Table("Costs of ours", note, ["÷ no defense", "÷ adversarial training"], rows)
