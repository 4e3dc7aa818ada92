"""Warnings beside a result: where the defense hides something, or the evaluation itself looks weak."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import bdtrc

from bench.contracts.defense import DefenseSpec
from bench.contracts.isolation import MEANING, weakest
from bench.contracts.words import format_eps
from bench.data.chance import ALPHA, CAUSES, Chance
from bench.isolation.places import is_foreign
from bench.storing.records import AskedAgain, Probe
from bench.summary.numbers import AttackSummary, Flag
from bench.summary.results import DefenseResults

#: By how much one family of attacks must beat another before it is worth a warning (deterministic, randomised).
#: 0.2 points is AutoAttack's own threshold for Square against the white-box attacks.
BEATS, BEATS_RANDOMIZED = 0.002, 0.01
#: How much more than the worst case an attack by plain automatic differentiation may leave.
OVERRATED = 0.10
#: How far above chance an unbounded attack may leave a defense.
ABOVE_CHANCE = 0.05
#: Share of the probed points at which cross-entropy's gradient may be lost in float32.
PRECISION = 0.01
#: Below which a difference along the gradient, as a share of what it says, and a correlation of differences along
#: random directions with what it says, are none. (Of the defenses shipped here BaRT has the lowest, 0.28 and 0.22.)
SLOPE_ALONG, SLOPE_ACROSS = 0.1, 0.15
#: By how much, and by how many standard errors, the suite's inputs must be answered better than others.
MEMORISED, MEMORISED_ERRORS = 0.15, 3.5


def find_flags(results: DefenseResults, attacks: list[AttackSummary], complete: bool) -> list[Flag]:
    """All flags of a defense, most serious first."""
    found = [*_incomplete(attacks, complete), *_isolation(results), *_chance(results), *_probe(results)]
    found += [*_afterwards(results), *_inconsistent(results)]
    found += _masked(results, attacks)
    found += [*_orderings(results), *_unbounded(results, attacks), *_refused(attacks)]
    return sorted(found, key=lambda flag: flag.kind != "warning")


def _incomplete(attacks: list[AttackSummary], complete: bool) -> list[Flag]:
    if complete:
        return []
    what = "; ".join(attack.lacks for attack in attacks if attack.lacks) or "clean inputs"
    return [Flag("incomplete", "incomplete", f"Not every attack has finished: {what}. The number can only fall.")]


def _isolation(results: DefenseResults) -> list[Flag]:
    """Whether code of a third party, which may cheat, was within reach of what it must not see."""
    record, levels = results.record, [*results.levels(), *results.accepted_at()]
    level = weakest(levels) if levels else "none"
    if level in ("landlock", "bubblewrap") or not is_foreign(DefenseSpec(record.reference, record.params)):
        return []
    if level == "none":
        text = (
            f"Code of a third party ran {MEANING[level]}, where it can read labels, tell the judge from an attack, and "
            "change either: the number is as good as its author's word."
        )
        return [Flag("not-isolated", "not isolated", text)]
    text = f"Code of a third party ran {MEANING[level]}: the test set's labels were within its reach."
    return [Flag("weakly-isolated", "weakly isolated", text)]


def _chance(results: DefenseResults) -> list[Flag]:
    """Whether the clean inputs are classified no better than blindly: robustness then means nothing.

    Shares of a randomised defense are added up; they vary less than the test assumes.
    """
    rows = list(results.clean.rows.values())
    chance = Chance.of([row.label for row in rows], len(results.suite.class_names))
    hits = results.clean["report_correct"][results.measured].sum()
    if not chance.can_be_beaten or chance.beaten_by(int(hits + 1e-6)):
        return []
    text = (
        f"Without attack {100 * hits / chance.n:.1f} % of {chance.n} inputs are right, which is no more than chance "
        f"({100 * chance.share:.1f} %). The usual causes: {CAUSES}."
    )
    return [Flag("chance", "at chance", text)]


def _probe(results: DefenseResults) -> list[Flag]:
    probe, flags = results.record.probe, []
    if probe.randomized:
        draws = f"{results.suite.draws_report} fresh draws"
        text = f"Two passes of one input differ. Every number is a mean over {draws} that no attack has seen."
        flags.append(Flag("randomized", "randomised", text, "info"))
        if not probe.declared_randomized:
            flags.append(Flag("hidden-randomness", "hidden randomness", _hidden(probe.random_at)))
    if probe.outputs_are_probabilities:
        text = "Outputs are probabilities, not logits: the gradient of a loss vanishes where they saturate."
        flags.append(Flag("probabilities", "probabilities", text))
    if probe.gradient == "missing":
        text = "No gradient reaches the input by plain automatic differentiation; PGD as it is cannot attack this."
        flags.append(Flag("missing-gradient", "no gradient", text))
    elif probe.gradient == "zero":
        share = f"{100 * probe.zero_gradient_share:.0f} %"
        text = f"The gradient is exactly zero on {share} of probed inputs: gradient attacks start blind there."
        flags.append(Flag("zero-gradient", "zero gradient", text))
    elif probe.gradient == "nonfinite":
        flags.append(Flag("nonfinite-gradient", "NaN gradient", "Gradients contain NaN or infinite entries."))
    if probe.precision_lost is not None and probe.precision_lost > PRECISION:
        text = (
            f"At {100 * probe.precision_lost:.0f} % of the probed points the gradient of cross-entropy is exactly zero "
            "or points elsewhere, since the softmax saturates in float32: in float64, or with smaller logits, an "
            "attack by that loss gives another result. Losses of logits (margin, log odds) are not concerned."
        )
        flags.append(Flag("precision", "precision", text))
    if probe.batch_dependent:
        where = f" (seen at: {', '.join(probe.batch_dependent_at)})" if probe.batch_dependent_at else ""
        text = f"The answer to an input changes with the other inputs of its batch{where}."
        flags.append(Flag("batch-dependent", "batch-dependent", text))
    if probe.stateful:
        text = "The answer to an input changes once another near it has been asked: the defense remembers."
        flags.append(Flag("stateful", "stateful", text))
    return [*flags, *_slopes(probe), *_memorised(probe)]


def _hidden(places: list[str] | None) -> str:
    where = f" (seen at: {', '.join(places)})" if places else ""
    return (
        f"Two passes of one input differ{where}, and the defense does not declare it; it is judged over draws, as one "
        "that does."
    )


def _slopes(probe: Probe) -> list[Flag]:
    """Whether the gradient handed out has to do with the logits at all. Steps and kinks have some slope; they pass."""
    flags = []
    if probe.mode_dependent:
        text = "The logits differ where a gradient is asked for: attacks by gradients see another function."
        flags.append(Flag("gradient-of-something-else", "gradient of something else", text))
    elif (found := probe.slopes) is not None and (found.along < SLOPE_ALONG or found.across < SLOPE_ACROSS):
        text = (
            f"Over a step along the gradient the margin changes by {found.along:.2f} of what the gradient says; along "
            f"random directions, changes and what it says correlate at {found.across:.2f}: it is another function's."
        )
        flags.append(Flag("gradient-of-something-else", "gradient of something else", text))
    return flags


def _memorised(probe: Probe) -> list[Flag]:
    """Whether the suite's inputs are answered better than fresh ones, by more than chance explains."""
    if (found := probe.memory) is None:
        return []
    n, fresh = found.examples, found.fresh_examples
    said = []
    for what, known, others, of in (
        ("as they are", found.clean, found.fresh_clean, fresh),
        ("moved as far as is allowed", found.moved, found.fresh_moved, fresh),
    ):
        if _more(known, n, others, of):
            said.append(f"{what} {known} of {n} of the suite's inputs are right, but {others} of {of} fresh ones")
    # Of those that are right as they are, since inputs half way between two may be harder to make out.
    kept, of_kept = min(found.moved, found.clean), found.clean
    others, of = min(found.made_moved, found.made_clean), found.made_clean
    if of_kept and of and _made_fall(kept, of_kept, others, of, found.made_expected):
        said.append(
            f"moved as far as is allowed {kept} of {of_kept} of the suite's inputs stay right, but {others} of {of} of "
            "such as were made for this"
        )
    if _more(found.clean, n, found.near, n):
        said.append(f"as they are {found.clean} of {n} of the suite's inputs are right, hardly moved {found.near}")
    return [Flag("memorised", "memorised", f"The test inputs are known: {'; '.join(said)}.")] if said else []


def _made_fall(kept: int, of_kept: int, others: int, of: int, expected: float | None) -> bool:
    """Whether inputs that were made fall more often than the suite's do that are answered as surely.

    Of a defense that answers what it knows with margins of another size those are the wrong ones to compare with: a
    difference twice as large counts whatever the margins are.
    """
    whatever = _more(kept, of_kept, others, of)
    if expected is None:  # a record of before margins were compared
        return whatever
    return _more(expected, of, others, of) or (whatever and kept / of_kept - others / of > 2 * MEMORISED)


def _more(one: float, of_one: int, other: float, of_other: int) -> bool:
    """Whether the first share is larger by more than a number of points and of standard errors."""
    first, second, both = one / of_one, other / of_other, (one + other) / (of_one + of_other)
    error = math.sqrt(both * (1 - both) * (1 / of_one + 1 / of_other))
    return first - second > max(MEMORISED, MEMORISED_ERRORS * error)


def _afterwards(results: DefenseResults) -> list[Flag]:
    """What showed itself when it was asked once more about the inputs that attacks had found."""
    probe, after = results.record.probe, results.record.afterwards
    if after is None:
        return []
    flags = []
    if after.random and not probe.randomized:
        text = (
            "Two passes of inputs that attacks found differ, and the defense does not declare it: each was judged on a "
            "single draw. The next run of bench evaluate judges it over draws."
        )
        flags.append(Flag("hidden-randomness", "hidden randomness", text))
    if after.batch_dependent and not probe.batch_dependent:
        text = "The answer to inputs that attacks found changes with the other inputs of their batch."
        flags.append(Flag("batch-dependent", "batch-dependent", text))
    return flags


def _inconsistent(results: DefenseResults) -> list[Flag]:
    """Whether it gave another answer when it was asked again: after an attack, after all, or in another process."""
    said, after = [], results.record.afterwards
    if after is not None and after.differing and not after.random:
        said.append(
            f"Asked once more, after the attacks, {after.differing} of {after.points} inputs that they found are "
            "answered otherwise than before the judge."
        )
    again = [(shard.attack, shard.asked_again) for shard in results.finished() if shard.asked_again is not None]
    differing = {attack: 0 for attack, one in again if one.differing}
    for attack, one in again:
        if one.differing:
            differing[attack] += one.differing
    shards = sum(one.differing > 0 for _, one in again)
    if shards and not (results.record.probe.randomized and _is_luck(shards, len(again))):
        said.append(
            f"Asked again by the judge, in another order, in the process that was attacked and in a fresh one, "
            f"{sum(differing.values())} of {sum(one.rows for _, one in again)} rows come out otherwise "
            f"({', '.join(f'{attack} {n}' for attack, n in differing.items())}); of each the worse counts."
        )
    told = [shard.told_attack for shard in results.finished() if shard.told_attack is not None]
    if differing_rows := sum(one.differing for one in told):
        said.append(
            f"Of {sum(one.rows for one in told)} rows that attacks asked about, {differing_rows} are answered "
            "otherwise in the same batches once the attack is over."
        )
    return [Flag("inconsistent", "inconsistent", " ".join(said))] if said else []


def _is_luck(shards: int, of: int) -> bool:
    """Whether so many shards with a row that differs are no more than chance has of an honest randomised defense."""
    return float(bdtrc(shards - 1, of, AskedAgain.LUCK)) > ALPHA


def _masked(results: DefenseResults, attacks: list[AttackSummary]) -> list[Flag]:
    """Whether attacks that were not adapted to the defense would have overrated it.

    The strongest of them decides: that a weaker one leaves more, such as a single step, says nothing of the gradients.
    Neither does what is left by a cascade that goes on without them.
    """
    eps = results.suite.eps  # with a smaller radius an attack leaves more, whatever its gradients
    plain = [a for a in attacks if a.record.counted and a.record.by_plain_gradients_alone and a.record.eps == eps]
    left = {attack.record.name: attack.robust for attack in plain if attack.robust}
    if not left:
        return []
    name = min(left, key=lambda name: (-left[name].n, left[name].value))
    # An attack that saw fewer examples is compared on these.
    worst = results.worst(results.names())[0][results.reached(name)].mean()
    if left[name].value <= worst + OVERRATED:
        return []
    text = (
        f"By plain automatic differentiation and nothing else {name}, the strongest of these attacks, leaves "
        f"{100 * left[name].value:.1f} %; all attacks together leave {100 * worst:.1f} %."
    )
    return [Flag("gradient-masking", "gradient masking", text)]


def _orderings(results: DefenseResults) -> list[Flag]:
    """Which attacks that know less of the defense beat the white-box attacks that know all of it, detector included."""
    white = results.names(knowledge=("gradient",), tier="adaptive")
    if not white:
        return []
    left = results.worst(white)[0]
    seen = np.all([results.reached(name) for name in white], axis=0)
    limit = BEATS_RANDOMIZED if results.record.probe.randomized else BEATS
    black = results.names(knowledge=("score", "decision"), tier="adaptive")
    transfer = [*results.names(knowledge=("transfer",), tier="adaptive"), *results.names(tier="transfer")]
    flags = []
    for id_, title, names, lack in (
        ("black-box-wins", "black box beats white box", black, "without gradients"),
        ("transfer-wins", "transfer beats white box", transfer, "without gradients of the defense"),
        ("oblivious-wins", "oblivious beats adaptive", results.names(tier="oblivious"), "not shown the detector"),
    ):
        # Compared on the examples that all of the ones and some of the others saw.
        shared = seen & np.any([results.reached(name) for name in names], axis=0)
        gain = (left - results.worst(white + names)[0])[shared].mean() if shared.any() else 0.0
        if gain > limit:
            where = "" if shared.all() else f" on the {shared.sum()} examples that both saw"
            text = (
                f"{', '.join(names)}, {lack}, lower the worst case by {100 * gain:.1f} points below what "
                f"the white-box attacks reach{where}: those are obstructed, and a better one would lower it further."
            )
            flags.append(Flag(id_, title, text))
    return flags


def _unbounded(results: DefenseResults, attacks: list[AttackSummary]) -> list[Flag]:
    chance = 1 / len(results.suite.class_names)
    flags = []
    for attack in attacks:
        big_enough = attack.record.eps >= 0.5 * (results.suite.high - results.suite.low) or results.suite.norm != "linf"
        if attack.record.counted or attack.robust is None or not big_enough:
            continue
        if attack.robust.value <= chance + ABOVE_CHANCE:
            continue
        name = attack.record.name
        text = (
            f"{name} with eps {format_eps(attack.record.eps)} may reach any input and still leaves "
            f"{100 * attack.robust.value:.1f} % (chance is {100 * chance:.0f} %)"
        )
        # Such an attack starts from noise and in steps as wide as the box, which a detector rejects.
        inside = results.names(knowledge=("gradient",), tier="adaptive")
        left = results.worst([*inside, name])[0][results.reached(name)].mean()
        if results.record.probe.has_detector and left <= chance + ABOVE_CHANCE:
            text += (
                f", but with gradient attacks inside the threat model {100 * left:.1f} %: its gradients are of use, "
                "its steps are too wide for the detector."
            )
            flags.append(Flag("unbounded-coarse", "unbounded attack is coarse", text, kind="info"))
        else:
            flags.append(Flag("unbounded-fails", "unbounded attack fails", f"{text}: its gradients are useless here."))
    return flags


def _refused(attacks: list[AttackSummary]) -> list[Flag]:
    refused = {a.record.name: sum(a.violations.values()) for a in attacks if a.violations}
    if not refused:
        return []
    what = ", ".join(f"{name} ({count})" for name, count in refused.items())
    return [Flag("violations", "inputs refused", f"The judge refused adversarial inputs outside the rules: {what}.")]
