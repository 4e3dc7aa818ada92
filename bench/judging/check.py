"""`bench check`: the whole contract of a defense in seconds, each rule a plain sentence."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.contracts.defense import Approximation, DefenseSpec, as_logits, ready
from bench.contracts.errors import TRACEBACK, InputError, in_one_line, raised
from bench.contracts.seeding import seeded
from bench.data.chance import CAUSES, Chance
from bench.data.load import kept_in, load_data
from bench.data.splits import Data
from bench.isolation.opening import Isolation, decide, open_defense
from bench.judging.behaviour import depends_on_batch, is_random
from bench.judging.probe import check_contract, gradient_state, why_it_raised, writes_into_input
from bench.plugins.resolve import LoadedDefense
from bench.suites.config import Suite
from bench.suites.fitting import check_fit


@dataclass(frozen=True)
class Finding:
    """The verdict on one rule: ``pass``, ``warn`` (evaluated all the same) or ``fail`` (cannot be evaluated)."""

    verdict: str
    rule: str
    detail: str = ""


class Warn(Exception):
    """Raised by a rule that is broken without making an evaluation impossible; the message says how."""


def check_defense(
    spec: DefenseSpec, suite: Suite, device: str = "cpu", root: Path | None = None, isolation: str = "none"
) -> Iterator[Finding]:
    """Check one defense on the suite's data, rule by rule; stops where going on makes no sense."""
    data = load_data(suite.data, root)
    check_fit(suite, data)
    try:
        apart = decide(spec, isolation, kept_in(suite.data, root))
        loaded = open_defense(spec, data.info, torch.device(device), suite.training(data), isolation=apart)
    except InputError as error:
        yield Finding("fail", "The defense can be found, built and given its weights.", str(error))
        return
    yield Finding("pass", "The defense can be found, built and given its weights.", _weights(loaded))
    rules = _Rules(spec, loaded, data, suite, device, apart)
    for rule in (
        rules.evaluation_mode,
        rules.forward,
        rules.batch_of_one,
        rules.input_untouched,
        rules.built_twice,
        rules.logits,
        rules.randomness,
        rules.batch_independence,
        rules.composition,
        rules.gradient,
        rules.approximations,
        rules.accuracy,
    ):
        finding = _apply(rule)
        yield finding
        if finding.verdict == "fail" and rule in (rules.evaluation_mode, rules.forward):
            return


def _weights(loaded: LoadedDefense) -> str:
    return f"checkpoint SHA-256 {loaded.sha256[:12]}…" if loaded.sha256 else "no checkpoint"


def _apply(rule: Callable[[], str | None]) -> Finding:
    sentence = (rule.__doc__ or "").strip()
    try:
        return Finding("pass", sentence, rule() or "")
    except Warn as warning:
        return Finding("warn", sentence, str(warning))
    except Exception as error:  # a plugin may raise anything; what it raised is the finding
        if os.environ.get(TRACEBACK):
            traceback.print_exception(error)
        return Finding("fail", sentence, str(error if isinstance(error, InputError) else raised("it raised", error)))


class _Rules:
    """Each method is one rule; its docstring is the sentence shown."""

    def __init__(
        self, spec: DefenseSpec, loaded: LoadedDefense, data: Data, suite: Suite, device: str, isolation: Isolation
    ) -> None:
        self.spec, self.data, self.suite, self.device, self.isolation = spec, data, suite, device, isolation
        self.defense, self.weights = loaded.defense, loaded.weights
        some = data.samples.take(32)
        self.x, self.y = some.x.clone().to(device), some.y.to(device)
        self.box = f"[{data.info.input.low:g}, {data.info.input.high:g}]"
        self.random = False

    def evaluation_mode(self) -> None:
        """It is in evaluation mode, all of it."""
        ready(self.defense)

    def forward(self) -> str:
        """forward(x) returns finite floating-point logits of shape (N, classes) for inputs in their box."""
        with in_one_line("it raised", lambda: why_it_raised(self.defense, self.x)):
            logits = check_contract(self.defense, self.x, self.data.info.num_classes)
        return f"{tuple(self.x.shape)} -> {tuple(logits.shape)} {str(logits.dtype).removeprefix('torch.')}"

    def batch_of_one(self) -> None:
        """A batch of one input works."""
        check_contract(self.defense, self.x[:1], self.data.info.num_classes)

    def input_untouched(self) -> None:
        """It leaves its input as it was."""
        if writes_into_input(self.defense, self.x):
            raise InputError("forward or detect writes into its input; work on a copy")

    def built_twice(self) -> None:
        """Building it twice gives the same weights, so that every worker attacks the same model."""
        training = self.suite.training(self.data)
        where = torch.device(self.device)
        again = open_defense(self.spec, self.data.info, where, training, isolation=self.isolation)
        if again.weights != self.weights:
            raise InputError("weights differ from one build to the next; load them from a file or fix the seed")

    def logits(self) -> None:
        """Its outputs are logits, not probabilities."""
        with torch.no_grad():
            out = self.defense(self.x)
        if out.min() >= 0 and out.max() <= 1 and (out.sum(1) - 1).abs().max() < 1e-5:
            raise Warn("rows lie in [0, 1] and sum to 1: drop the final softmax; the result will carry a flag")

    def randomness(self) -> str:
        """It says whether it is randomised."""
        self.random = is_random(self.defense, self.x)
        if self.random and not self.defense.randomized:
            raise Warn("two passes differ although randomized is False; it will be treated as randomised")
        if self.defense.randomized and not self.random:
            raise Warn("randomized is True although passes do not differ; every number will cost many draws")
        return "randomised" if self.random else "deterministic"

    def batch_independence(self) -> None:
        """The logits of an input do not depend on the other inputs of its batch."""
        if not self.random and depends_on_batch(self.defense, self.x):
            raise Warn("they change when the batch is permuted or split")

    def composition(self) -> None:
        """forward(x) is classifier(transform(x)), so that attacks on g reach what is evaluated."""
        with torch.no_grad():
            with seeded("check"):
                whole = self.defense(self.x)
            with seeded("check"):
                parts = as_logits(self.defense.classifier(self.defense.transform(self.x)))
        if (whole - parts).abs().max() > 1e-3 * (1 + whole.abs().max()):
            raise Warn("they differ: BPDA-I and white-box transfer will attack something else than forward")

    def gradient(self) -> None:
        """The loss has a gradient at the input by plain autograd, or an approximation is declared."""
        state, share = gradient_state(self.defense, self.x, self.y, self.suite.threat_for(self.data.info))
        if state != "ok" and not self.defense.approximations():
            raise Warn(f"gradient {state} ({100 * share:.0f} % of images) and approximations() is empty")

    def approximations(self) -> str:
        """Each declared approximation has the shape of transform(x), and a gradient."""
        declared = self.defense.approximations()
        for name, approximation in declared.items():
            self._approximation(name, approximation)
        return ", ".join(declared) or "none declared"

    def _approximation(self, name: str, approximation: Approximation) -> None:
        x = self.x.clone().requires_grad_()
        with seeded("check"):
            stand_in = approximation.through(x)
        with torch.no_grad(), seeded("check"):
            value = self.defense.transform(self.x)
        if stand_in.shape != value.shape:
            raise InputError(f"{name}: expected shape {tuple(value.shape)}, got {tuple(stand_in.shape)}")
        if not stand_in.requires_grad:
            raise InputError(f"{name}: no gradient reaches the input")
        (grad,) = torch.autograd.grad(stand_in.sum(), x, allow_unused=True)
        if grad is None or not torch.isfinite(grad).all():
            raise InputError(f"{name}: its gradient is missing, NaN or infinite")
        if approximation.exact_forward and (stand_in - value).abs().max() > 1e-5:
            raise InputError(f"{name}: exact_forward is declared, but its value is not that of transform(x)")

    def accuracy(self) -> str:
        """On clean images it is clearly better than chance."""
        hits = 0
        split = self.data.samples.take(256)
        with torch.no_grad(), seeded("check"):
            for x, y in split.batches(64):
                hits += int((self.defense(x.clone().to(self.device)).argmax(1).cpu() == y).sum())
        said = f"{100 * hits / len(split):.1f} % of {len(split)}"
        chance = Chance.of(split.y.tolist(), self.data.info.num_classes)
        if not chance.can_be_beaten:
            return f"{said}, too few to tell it from chance ({100 * chance.share:.1f} %)"
        if not chance.beaten_by(hits):
            raise Warn(
                f"{said}, which is chance ({100 * chance.share:.1f} %). Inputs come in {self.box}. The usual causes: "
                f"{CAUSES}"
            )
        return said
