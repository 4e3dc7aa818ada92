"""Which attacks are compared, on which model, and with which budgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .comparison import OURS, Comparison, Entry
from .libraries import adv_lib, art, cleverhans, foolbox, ours, pyautoattack, torchattacks


def _ours(attack: str, *, time_goal: float | None = None, **params: Any) -> Entry:
    return Entry(OURS, ours.run, {"attack": attack, **params}, time_goal)


def _peer(library: str, function: Callable[..., Tensor], **settings: Any) -> Entry:
    return Entry(library, function, settings)


#: The digits suites' radius; the one that the robust CIFAR-10 network was trained at; one that leaves the ordinary
#: network something.
_DIGITS, _CIFAR, _ORDINARY = 0.2, 2 / 255, 1 / 255
#: Peers' PGD steps by a tenth of eps: on the digits model that is stronger than their own eps/30 or eps/40.
_STEP = 0.1


def _pgd(name: str, subject: str, examples: int, norm: str, eps: float, restarts: int, overhead: float) -> Comparison:
    peers = [
        _peer("foolbox", foolbox.pgd, steps=40, restarts=restarts, step_size=_STEP),
        _peer("art", art.pgd, steps=40, restarts=restarts, step_size=_STEP),
    ]
    if norm == "linf":
        both = {"steps": 40, "restarts": restarts, "step_size": _STEP}
        peers = [
            _peer("adv-lib", adv_lib.pgd, **both),
            _peer("adv-lib", adv_lib.pgd, **both, loss="dl"),
            *peers,
        ]
    if restarts == 1:
        peers += [
            _peer("torchattacks", torchattacks.pgd, steps=40, step_size=_STEP),
            _peer("cleverhans", cleverhans.pgd, steps=40, step_size=_STEP),
        ]
    return Comparison(
        name,
        f"PGD-40, {restarts} start{'s' if restarts > 1 else ''}, {norm}",
        subject,
        examples,
        norm,
        eps,
        f"{40 * restarts} gradients",
        (
            _ours("pgd", steps=40, restarts=restarts),
            _ours("pgd", steps=40, restarts=restarts, loss="ce"),
            *peers,
        ),
        overhead_goal=overhead,
    )


def _apgd(name: str, subject: str, examples: int, norm: str, eps: float, loss: str) -> Comparison:
    both: dict[str, Any] = {"loss": loss, "steps": 100}
    return Comparison(
        name,
        f"APGD with the {loss.upper()} loss, {norm}",
        subject,
        examples,
        norm,
        eps,
        "100 gradients",
        (
            _ours("apgd", **both),
            _peer("pyautoattack", pyautoattack.apgd, **both),
            _peer("adv-lib", adv_lib.apgd, **both),
            _peer("torchattacks", torchattacks.apgd, **both),
            _peer("art", art.apgd, **both),
        ),
        overhead_goal=1.15,
    )


def _apgd_t(name: str, subject: str, examples: int, eps: float) -> Comparison:
    both: dict[str, Any] = {"steps": 100, "classes": 9}
    return Comparison(
        name,
        "APGD with the targeted DLR loss, linf",
        subject,
        examples,
        "linf",
        eps,
        "100 gradients towards each of 9 classes",
        (
            _ours("apgd", loss="dlr", steps=100, targets=9),
            _peer("pyautoattack", pyautoattack.apgd_t, **both),
            _peer("adv-lib", adv_lib.apgd_t, **both),
            _peer("torchattacks", torchattacks.apgd_t, **both),
        ),
        overhead_goal=1.15,
    )


def _fab(name: str, subject: str, examples: int, norm: str, eps: float, classes: int) -> Comparison:
    both: dict[str, Any] = {"steps": 100, **({"classes": classes} if classes else {})}
    return Comparison(
        name,
        f"{'Targeted ' if classes else ''}FAB, {norm}",
        subject,
        examples,
        norm,
        eps,
        f"100 steps{f' towards each of {classes} classes' if classes else ''}",
        (
            _ours("fab", steps=100, **({"targets": classes} if classes else {})),
            _peer("pyautoattack", pyautoattack.fab, **both),
            _peer("adv-lib", adv_lib.fab, **both),
            _peer("torchattacks", torchattacks.fab, **both),
        ),
        slow=True,
    )


def _autoattack(name: str, subject: str, examples: int, norm: str, eps: float) -> Comparison:
    return Comparison(
        name,
        f"AutoAttack standard, {norm}",
        subject,
        examples,
        norm,
        eps,
        "the standard composition; `cascade` is our own ordering of the suite",
        (
            _ours("autoattack", time_goal=0.5),
            _ours("cascade", time_goal=0.2),
            _peer("pyautoattack", pyautoattack.autoattack),
            _peer("torchattacks", torchattacks.autoattack),
        ),
        slow=True,
    )


def _square(name: str, subject: str, examples: int, norm: str, eps: float, queries: int) -> Comparison:
    peers = [
        _peer("pyautoattack", pyautoattack.square, queries=queries, rescaled=True),
        _peer("pyautoattack", pyautoattack.square, queries=queries, rescaled=False),
        _peer("torchattacks", torchattacks.square, queries=queries),
        _peer("art", art.square, queries=queries),
    ]
    return Comparison(
        name,
        f"Square, {norm}",
        subject,
        examples,
        norm,
        eps,
        f"{queries:,} queries",
        (_ours("square", queries=queries), *peers),
        slow=True,
        overhead_goal=1.05 if norm == "linf" else 1.15,
    )


#: Iterations with which the peers' HopSkipJump comes nearest to a number of queries.
_HOPS = {1000: 5, 5000: 17, 10000: 27}


def _hopskipjump(norm: str, queries: int, examples: int) -> Comparison:
    steps = _HOPS[queries]
    return Comparison(
        f"hopskipjump-{norm}-{queries}",
        f"HopSkipJump, {norm}, {queries:,} queries",
        "digits",
        examples,
        norm,
        None,
        f"{queries:,} queries (peers: {steps} iterations, which take about as many)",
        (
            _ours("hopskipjump", queries=queries),
            _peer("foolbox", foolbox.hopskipjump, steps=steps),
            _peer("art", art.hopskipjump, steps=steps),
            _peer("cleverhans", cleverhans.hopskipjump, steps=steps),
        ),
        slow=True,
        overhead_goal=1.1,
    )


def _deepfool(name: str, subject: str, examples: int, norm: str) -> Comparison:
    peers = [
        _peer("adv-lib", adv_lib.deepfool, steps=50),
        _peer("foolbox", foolbox.deepfool, steps=50),
    ]
    if norm == "l2":
        peers += [
            _peer("torchattacks", torchattacks.deepfool, steps=50),
            _peer("art", art.deepfool, steps=50),
        ]
    return Comparison(
        name,
        f"DeepFool, {norm}",
        subject,
        examples,
        norm,
        None,
        "at most 50 steps",
        (_ours("deepfool", steps=50), *peers),
    )


def _ddn(name: str, subject: str, examples: int) -> Comparison:
    return Comparison(
        name,
        "DDN, l2",
        subject,
        examples,
        "l2",
        None,
        "100 gradients",
        (
            _ours("ddn", steps=100),
            _peer("adv-lib", adv_lib.ddn, steps=100),
            _peer("foolbox", foolbox.ddn, steps=100),
        ),
    )


def _fmn(name: str, subject: str, examples: int, norm: str) -> Comparison:
    return Comparison(
        name,
        f"FMN, {norm}",
        subject,
        examples,
        norm,
        None,
        "100 gradients",
        (
            _ours("fmn", steps=100),
            _peer("adv-lib", adv_lib.fmn, steps=100),
            _peer("foolbox", foolbox.fmn, steps=100),
        ),
    )


def _carlini_wagner(name: str, examples: int, searches: int, steps: int, *extra: Entry) -> Comparison:
    both = {"searches": searches, "steps": steps}
    return Comparison(
        name,
        f"C&W, l2, {searches} × {steps} iterations",
        "digits",
        examples,
        "l2",
        None,
        f"{searches} constants × {steps} iterations",
        (
            _ours("cw", **both),
            _peer("adv-lib", adv_lib.carlini_wagner, **both),
            _peer("foolbox", foolbox.carlini_wagner, **both),
            _peer("cleverhans", cleverhans.carlini_wagner, **both),
            *extra,
        ),
        slow=True,
    )


_JSMA: dict[str, Any] = {"theta": 1.0, "gamma": 1.0}

COMPARISONS: tuple[Comparison, ...] = (
    _pgd("pgd-linf", "digits", 450, "linf", _DIGITS, 1, 1.15),
    _pgd("pgd-linf-restarts", "digits", 450, "linf", _DIGITS, 5, 1.15),
    _pgd("pgd-l2", "digits", 450, "l2", 1.0, 1, 1.15),
    _apgd("apgd-ce-linf", "digits", 450, "linf", _DIGITS, "ce"),
    _apgd("apgd-dlr-linf", "digits", 450, "linf", _DIGITS, "dlr"),
    _apgd("apgd-ce-l2", "digits", 450, "l2", 0.5, "ce"),
    _apgd_t("apgd-t-linf", "digits", 450, _DIGITS),
    _fab("fab-linf", "digits", 100, "linf", _DIGITS, 0),
    _fab("fab-t-linf", "digits", 100, "linf", _DIGITS, 9),
    _fab("fab-l2", "digits", 100, "l2", 0.5, 0),
    _autoattack("autoattack-linf", "digits", 450, "linf", _DIGITS),
    _square("square-linf", "digits", 200, "linf", _DIGITS, 1000),
    _square("square-l2", "digits", 200, "l2", 0.75, 1000),
    Comparison(
        "genattack",
        "GenAttack, linf",
        "digits",
        200,
        "linf",
        _DIGITS,
        "2,000 queries",
        (
            _ours("genattack", population=6, generations=399),
            _peer("foolbox", foolbox.genattack, steps=200, population=10),
        ),
        slow=True,
        overhead_goal=1.2,
    ),
    _hopskipjump("linf", 1000, 64),
    _hopskipjump("linf", 5000, 32),
    _hopskipjump("linf", 10000, 32),
    _hopskipjump("l2", 1000, 64),
    _hopskipjump("l2", 5000, 32),
    Comparison(
        "boundary-l2",
        "Boundary attack, l2",
        "digits",
        32,
        "l2",
        None,
        "5,000 queries (peers: the number of steps that takes about as many)",
        (
            _ours("boundary", queries=5000),
            _peer("foolbox", foolbox.boundary, steps=4500),
            _peer("art", art.boundary, steps=150),
        ),
        slow=True,
    ),
    _deepfool("deepfool-l2", "digits", 450, "l2"),
    _deepfool("deepfool-linf", "digits", 450, "linf"),
    _ddn("ddn-l2", "digits", 450),
    *(_fmn(f"fmn-{norm}", "digits", 450, norm) for norm in ("linf", "l2", "l1", "l0")),
    _carlini_wagner("cw-l2-500", 100, 5, 100, _peer("torchattacks", torchattacks.carlini_wagner, steps=500)),
    _carlini_wagner("cw-l2-4500", 32, 9, 500),
    Comparison(
        "jsma",
        "JSMA towards the next class, number of pixels changed",
        "digits",
        100,
        "l0",
        None,
        "all pixels, steps of 1",
        (
            _ours("jsma", **_JSMA),
            _ours("jsma", **_JSMA, outputs="probabilities"),
            _peer("torchattacks", torchattacks.jsma, **_JSMA),
            _peer("art", art.jsma, **_JSMA),
        ),
        targeted=True,
        overhead_goal=1.5,
        repeats=3,
    ),
    Comparison(
        "eot-pgd",
        "PGD-20 on the mean of 10 draws, linf",
        "noisy-digits",
        450,
        "linf",
        _DIGITS,
        "20 gradients of 10 draws each",
        (
            _ours("pgd", steps=20, estimator={"eot": {"samples": 10, "of": "exact"}}),
            _peer("foolbox", foolbox.pgd, steps=20, step_size=_STEP, draws=10),
            _peer("torchattacks", torchattacks.eot_pgd, steps=20, step_size=_STEP, draws=10),
            _peer("adv-lib", adv_lib.apgd, loss="ce", steps=20, draws=10),
            _peer("pyautoattack", pyautoattack.apgd, loss="ce", steps=20, draws=10),
        ),
    ),
    _pgd("cnn-a-pgd-linf-restarts", "cnn-a", 200, "linf", _CIFAR, 5, 1.05),
    _apgd("cnn-a-apgd-ce-linf", "cnn-a", 200, "linf", _CIFAR, "ce"),
    _autoattack("cnn-a-autoattack-linf", "cnn-a", 200, "linf", _CIFAR),
    _square("cnn-a-square-linf", "cnn-a", 100, "linf", _CIFAR, 1000),
    _ddn("cnn-a-ddn-l2", "cnn-a", 200),
    _pgd("resnet8-pgd-linf", "resnet8", 200, "linf", _ORDINARY, 1, 1.05),
    _apgd("resnet8-apgd-ce-linf", "resnet8", 200, "linf", _ORDINARY, "ce"),
    _deepfool("resnet8-deepfool-l2", "resnet8", 100, "l2"),
    _ddn("resnet8-ddn-l2", "resnet8", 200),
    _fmn("resnet8-fmn-linf", "resnet8", 200, "linf"),
)
