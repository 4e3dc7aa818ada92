"""What every registered attack obeys in every norm, whatever it does: these laws are not repeated per attack."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from lab import assert_feasible
from registered import CASES, EPS, NEED_DATA, SMALL, norm_of, radius, run, specs, target_of, toy
from torch import Tensor

import attacks
from bench.contracts.answers import predictions
from bench.contracts.defense import Defense, Function
from bench.contracts.errors import KnowledgeError, NotApplicable
from bench.contracts.inputs import DataInfo
from bench.contracts.seeding import seeded
from bench.contracts.target import Target
from bench.contracts.words import KNOWLEDGE

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]
NAMES = sorted(specs())
#: Most forward and backward passes of an example with the budgets of ``SMALL``, where no cap on queries is among them.
CAPS = {
    "a3": (25, 20), "alma": (11, 10),
    "apgd": (11, 10), "arc": (8, 8),
    "autoattack": (200, 100), "bim": (6, 5), "cw": (20, 20), "ddn": (11, 10), "deepfool": (9, 18),
    "fab": (10, 20), "fgsm": (1, 1), "fmn": (11, 10), "genattack": (6 + 9 * 5, 0), "lbfgs": (11, 10),
    "mi-fgsm": (6, 5), "noise": (5, 0), "one-pixel": (50, 0), "pgd": (6, 5), "pma": (14, 12), "transfer": (0, 0),
    "cascade": (400, 200), "sigma-zero": (31, 30),
}  # fmt: skip
#: Attacks that compute all they do from x, given one run of these budgets.
NOTHING_DRAWN = {
    "alma", "arc", "bim", "cw", "ddn", "deepfool", "fab", "fgsm", "fmn", "jsma", "lbfgs", "mi-fgsm", "sigma-zero",
}  # fmt: skip
#: Attacks whose result is another with other random numbers.
DRAWN = {
    "a3", "apgd", "boundary", "cgba", "genattack", "hopskipjump", "noise", "one-pixel", "pgd", "pma", "rays", "spsa",
    "square", "transfer",
}  # fmt: skip

#: Attacks that look at all examples until the end: one step, none at all, or to come ever nearer.
ALL_STAY = {
    ("cw", "l0"), ("ddn", "l2"), ("fgsm", "linf"), ("fgsm", "l2"), ("released-bpda", "linf"),
    ("transfer", "linf"), ("transfer", "l2"),
}  # fmt: skip

every = pytest.mark.parametrize("name", NAMES)
everywhere = pytest.mark.parametrize(("name", "norm"), CASES)


class Broken(Defense):
    """NaN for every input."""

    def __init__(self, data: DataInfo) -> None:
        super().__init__(data)
        self.classifier = Function(lambda x: torch.full((len(x), 4), torch.nan, dtype=x.dtype))


class Fragile(Defense):
    """Right about the inputs it knows; NaN anywhere else."""

    def __init__(self, sound: Defense, known: Tensor) -> None:
        super().__init__(sound.data)
        self.classifier, self.known = sound, known

    def forward(self, x: Tensor) -> Tensor:
        strange = (torch.cdist(x.flatten(1), self.known.flatten(1)) > 1e-3).all(1)
        return torch.where(strange[:, None], torch.nan, self.classifier(x))


class Constant(Defense):
    """Class 0, whatever the input, by logits without a graph."""

    def __init__(self, data: DataInfo) -> None:
        super().__init__(data)
        self.classifier = Function(lambda x: torch.tensor([[1.0, 0.0, -1.0, -2.0]], dtype=x.dtype).repeat(len(x), 1))


class Noisy(Defense):
    """Another through Gaussian noise."""

    randomized = True

    def __init__(self, sound: Defense) -> None:
        super().__init__(sound.data)
        self.classifier = sound

    def transform(self, x: Tensor) -> Tensor:
        return x + 0.02 * torch.randn_like(x)


def _spent(target: Target) -> Tensor:
    return torch.stack([target.counts.forward, target.counts.backward])


@cache
def _first(name: str, norm: str) -> tuple[Tensor, Tensor]:
    """x_adv in double precision, and the passes it took."""
    defense, x, y = toy(SHAPES[0], dtype=torch.float64)
    target = target_of(name, norm, defense, len(x))
    return run(name, target, x, y), _spent(target)


# -- what is returned, and at what cost ---------------------------------------------------------------------------


def test_budgets_are_those_of_registered_attacks() -> None:
    assert {*SMALL, *CAPS, *DRAWN, *NOTHING_DRAWN} <= set(specs())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@everywhere
def test_examples_that_have_fallen_leave_the_batch(name: str, norm: str, shape: tuple[int, ...]) -> None:
    """In the smallest of growing balls where some fall before others: the model is not shown the fallen again."""
    for factor in (1 / 3, 1, 2, 4, 8, 16):
        defense, x, y = toy(shape)
        seen: list[int] = []
        target = target_of(name, norm, defense, len(x), eps=factor * radius(norm, shape))
        _note_rows(defense, seen)
        x_adv = run(name, target, x, y)
        if specs()[name].seeks == "rejection":
            assert target.detection is not None and defense.detect is not None
            fallen = ~target.detection.accepts(defense.detect(x_adv))
        else:
            fallen = predictions(defense(x_adv)) != y
        seen.pop()  # this look at what was returned
        passes = target.counts.forward
        assert sum(seen) == passes.sum(), "a row that is not counted, or one counted that the model never saw"
        if (name, norm) in ALL_STAY:
            assert passes.min() == passes.max()
            return
        if fallen.any() and passes.min() < passes.max():
            return
    pytest.fail("no example was let go before the others")


def _note_rows(defense: Defense, seen: list[int]) -> None:
    """Note how many rows each pass of a defense has, of its detector too."""
    defense.classifier.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    if (detect := defense.detect) is not None:

        def noting(x: Tensor) -> Tensor:
            seen.append(len(x))
            return detect(x)

        defense.detect = noting


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@everywhere
def test_it_stays_in_ball_and_box_within_its_budget_and_touches_nothing_else(
    name: str, norm: str, shape: tuple[int, ...]
) -> None:
    defense, x, y = toy(shape)
    given, labels, state = x.clone(), y.clone(), torch.get_rng_state()
    target = target_of(name, norm, defense, len(x))
    x_adv = run(name, target, x, y)
    assert_feasible(target, x, x_adv)
    assert not x_adv.requires_grad
    assert torch.equal(x, given) and torch.equal(y, labels), "what is given is not written to"
    assert torch.equal(torch.get_rng_state(), state), "randomness comes from the target's generator"
    queries = SMALL.get(name, {}).get("queries")
    forward, backward = CAPS.get(name, (queries, 0 if queries else None))
    assert forward is None or target.counts.forward.max() <= forward
    assert backward is None or target.counts.backward.max() <= backward
    assert (target.counts.backward.max() > 0) == (specs()[name].knowledge == "gradient")


# -- what must not matter -----------------------------------------------------------------------------------------


@everywhere
def test_the_seed_alone_decides(name: str, norm: str) -> None:
    defense, x, y = toy(SHAPES[0], dtype=torch.float64)
    first, spent = _first(name, norm)
    assert first.dtype == torch.float64
    torch.manual_seed(1)
    again = target_of(name, norm, defense, len(x))
    assert torch.equal(run(name, again, x, y), first) and torch.equal(_spent(again), spent)
    other = run(name, target_of(name, norm, defense, len(x), seed=1), x, y)
    if name in DRAWN | NOTHING_DRAWN:
        assert torch.equal(other, first) == (name in NOTHING_DRAWN)


@everywhere
def test_the_batch_size_changes_nothing(name: str, norm: str) -> None:
    defense, x, y = toy(SHAPES[0], dtype=torch.float64)
    first, spent = _first(name, norm)
    target = target_of(name, norm, defense, len(x), batch_size=2)
    torch.testing.assert_close(run(name, target, x, y), first, atol=1e-9, rtol=0)
    assert torch.equal(_spent(target), spent)


# -- defenses that give an attack nothing to hold on to -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["broken", "fragile", "constant", "noisy"])
@everywhere
def test_a_defense_that_misbehaves_ends_in_feasible_points(name: str, norm: str, kind: str) -> None:
    sound, x, y = toy(SHAPES[0])
    kinds = {"broken": Broken(sound.data), "fragile": Fragile(sound, x), "constant": Constant(sound.data)}
    defense = kinds.get(kind, Noisy(sound)).eval()
    y = torch.zeros_like(y) if kind == "constant" else y
    target = target_of(name, norm, defense, len(x), randomized=defense.randomized)
    with seeded("defense"):
        assert_feasible(target, x, run(name, target, x, y))
    if kind == "constant" and name != "transfer":
        assert target.counts.forward.min() > 0


# -- what an attack may see, and what it is for -----------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if specs()[name].knowledge != "transfer"])
def test_less_knowledge_than_it_needs_stops_it(name: str) -> None:
    defense, x, y = toy(SHAPES[0])
    needed = specs()[name].knowledge
    less = KNOWLEDGE[KNOWLEDGE.index(needed) - 1]
    with pytest.raises(KnowledgeError, match=f"a {less} attack asked for"):
        run(name, target_of(name, norm_of(name), defense, len(x), knowledge=less), x, y)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEED_DATA])
def test_norms_and_targeted_forms_that_it_lacks_are_named(name: str) -> None:
    defense, x, y = toy(SHAPES[0])
    spec = specs()[name]
    for norm in set(EPS) - set(spec.norms):
        with pytest.raises(NotApplicable, match=f"{name} has no {norm} version"):
            attacks.run(name, defense, x, y, norm=norm, eps=1.0)
    if not spec.targeted:
        with pytest.raises(NotApplicable, match=f"{name} has no targeted form"):
            attacks.run(name, defense, x, y, norm=norm_of(name), eps=1.0, towards=(y + 1) % 4)


@pytest.mark.parametrize(("name", "norm"), [case for case in CASES if specs()[case[0]].targeted])
def test_a_targeted_form_counts_its_class_alone(name: str, norm: str) -> None:
    defense, x, y = toy(SHAPES[0])
    towards = (y + 1) % 4
    target = target_of(name, norm, defense, len(x), towards=towards, eps=8 * radius(norm, SHAPES[0]))
    x_adv = run(name, target, x, y)
    assert_feasible(target, x, x_adv)
    if name not in ("boundary", "cgba", "genattack", "hopskipjump", "one-pixel", "spsa", "square", "transfer"):
        assert (predictions(defense(x_adv)) == towards).any(), "eight times the radius is enough for one at least"
