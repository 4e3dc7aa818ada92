"""The target: what each knowledge may see, and passes counted per example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from stand_ins import TINY, Coin, ScriptedDetector, linear_defense, picture
from torch import Tensor, nn

from attacks.toolkit.losses import Goal, margin
from bench.contracts.answers import NOT_FINITE, REJECTED, predictions
from bench.contracts.defense import Defense
from bench.contracts.errors import InputError, KnowledgeError
from bench.contracts.seeding import generator
from bench.contracts.target import Target
from bench.contracts.threat import Lp
from bench.contracts.words import KNOWLEDGE

LINF = Lp("linf", 0.3)


def make(defense: Defense | None = None, n: int = 3, knowledge: str = "gradient", **more: Any) -> Target:
    return Target(defense or linear_defense(), LINF, n, knowledge=knowledge, generator=generator("t"), **more)


def images(n: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(seed))


def through(defense: Defense, x: Tensor) -> Tensor:
    return defense(x)


def goal(n: int = 3) -> Goal:
    return Goal(margin, torch.zeros(n, dtype=torch.int64))


# -- knowledge --------------------------------------------------------------------------------------------------

Y = torch.zeros(3, dtype=torch.int64)
ASKS: dict[str, tuple[str, Callable[[Target], Any]]] = {
    "labels": ("decision", lambda t: t.labels(images())),
    "is_adversarial": ("decision", lambda t: t.is_adversarial(images(), Y)),
    "logits": ("score", lambda t: t.logits(images())),
    "fooled": ("score", lambda t: t.fooled(torch.zeros(3, 4), images(), Y)),
    "defense": ("gradient", lambda t: t.defense),
    "evaluate": ("gradient", lambda t: t.evaluate(images(), through, goal())),
    "scores": ("score", lambda t: t.scores(images())),
    "score_gradient": ("gradient", lambda t: t.score_gradient(images())),
    "jacobian": ("gradient", lambda t: t.jacobian(images(), through)),
}


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
@pytest.mark.parametrize("method", ASKS)
def test_a_target_shows_what_the_knowledge_allows_and_no_more(method: str, knowledge: str) -> None:
    needs, ask = ASKS[method]
    target = make(ScriptedDetector().eval(), knowledge=knowledge, threshold=0.5)
    if KNOWLEDGE.index(needs) <= KNOWLEDGE.index(knowledge):
        ask(target)
    else:
        with pytest.raises(KnowledgeError, match=f"a {knowledge} attack asked for {needs} knowledge"):
            ask(target)
        assert target.counts.forward.sum() == 0


def test_every_method_that_looks_at_the_defense_is_in_the_list_above() -> None:
    free = {"ball", "examples", "rand", "randn", "rejects", "subset", "without_detector", "on_levels", "snap"}
    assert {name for name in vars(Target) if not name.startswith("_")} - free == set(ASKS)


# -- what is returned -------------------------------------------------------------------------------------------


def test_logits_labels_and_gradients_are_those_of_the_defense() -> None:
    target, x = make(), images()
    logits = linear_defense()(x)
    assert torch.equal(target.logits(x), logits)
    assert torch.equal(target.labels(x), logits.argmax(1))
    weight = linear_defense().classifier[1].weight  # type: ignore[index,union-attr]
    at = target.evaluate(x, through, goal())
    other = logits[:, 1:].argmax(1) + 1
    assert torch.allclose(at.grad.flatten(1), weight[other] - weight[0], atol=1e-6)
    assert torch.equal(at.loss, margin(logits, Y))
    assert not at.loss.requires_grad and not at.logits.requires_grad


def test_draws_are_averaged_for_logits_and_voted_on_for_labels() -> None:
    x = torch.stack([picture(0.7)] * 200)
    target = make(Coin(), 200, randomized=True)
    means = target.logits(x, draws=64)[:, 0]
    assert abs(means.mean() - 0.7) < 0.02
    assert means.std() < 0.1  # 0.057 expected; 0.46 with a single draw
    votes = target.labels(x, draws=65)
    assert (votes == 0).float().mean() > 0.98
    assert target.is_adversarial(x, torch.zeros(200, dtype=torch.int64), draws=65).float().mean() < 0.02


def test_a_tied_vote_is_not_adversarial() -> None:
    class Alternating(Defense):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return torch.eye(4)[[self.calls % 2] * len(x)]

    assert not make(Alternating(TINY), 1).is_adversarial(images(1), torch.zeros(1, dtype=torch.int64), draws=2).any()


def test_random_numbers_come_from_the_attacks_generator_alone() -> None:
    x = images()
    torch.manual_seed(1)
    first = make().rand(3, like=x), make().randn(3, like=x)
    torch.manual_seed(2)
    second = make().rand(3, like=x), make().randn(3, like=x)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


# -- detectors --------------------------------------------------------------------------------------------------


def detector(**more: Any) -> Target:
    return make(ScriptedDetector(), threshold=0.5, **more)


def test_a_rejected_input_has_the_label_rejected_and_is_not_adversarial() -> None:
    x = torch.stack([picture(0.1, 0.1), picture(0.4, 0.1), picture(0.4, 0.9)])
    target = detector(knowledge="decision")
    assert target.rejects
    assert target.labels(x).tolist() == [0, 1, REJECTED]
    assert target.is_adversarial(x, Y).tolist() == [False, True, False]


def test_fooled_respects_the_detector_and_counts_only_the_inputs_it_had_to_ask_about() -> None:
    x = torch.stack([picture(0.1, 0.9), picture(0.4, 0.1), picture(0.4, 0.9)])
    target = detector(knowledge="score")
    logits = target.logits(x)
    assert target.fooled(logits, x, Y).tolist() == [False, True, False]
    assert target.counts.forward.tolist() == [1, 2, 2]
    index = torch.tensor([2, 2, 0])
    assert target.fooled(logits, x, Y, index).tolist() == [False, True, False]
    assert target.counts.forward.tolist() == [2, 2, 3]


def test_a_nan_score_rejects_nowhere() -> None:
    class Broken(ScriptedDetector):
        def detect(self, x: Tensor) -> Tensor:
            return torch.full((len(x),), torch.nan)

    target = make(Broken(), threshold=0.5)
    x = torch.stack([picture(0.4)] * 3)
    assert REJECTED not in target.labels(x).tolist()
    logits = target.logits(x)
    assert target.fooled(logits, x, Y).tolist() == (logits.argmax(1) != Y).tolist()


def test_without_a_detector_nothing_is_rejected() -> None:
    x = torch.stack([picture(0.4, 0.9)] * 3)
    target = make(ScriptedDetector())
    assert not target.rejects
    assert target.labels(x).tolist() == [1] * 3


# -- counting ---------------------------------------------------------------------------------------------------


def test_without_an_index_every_example_is_counted_once() -> None:
    target = make()
    target.logits(images())
    target.labels(images())
    target.evaluate(images(), through, goal())
    assert target.counts.forward.tolist() == [3, 3, 3]
    assert target.counts.backward.tolist() == [1, 1, 1]


def test_rows_are_counted_for_the_example_they_belong_to() -> None:
    target = make()
    index = torch.tensor([2, 0, 2, 2])
    target.logits(images(4), index)
    assert target.counts.forward.tolist() == [1, 0, 3]
    target.evaluate(images(4), through, goal(4), index)
    assert target.counts.forward.tolist() == [2, 0, 6]
    assert target.counts.backward.tolist() == [1, 0, 3]


def test_every_draw_is_counted() -> None:
    target = make(Coin(), randomized=True)
    target.logits(images(), draws=5)
    target.labels(images(), draws=3)
    target.is_adversarial(images(1), Y[:1], torch.tensor([1]), draws=4)
    assert target.counts.forward.tolist() == [8, 12, 8]


def test_cost_multiplies_the_passes_of_an_evaluation() -> None:
    def twice(defense: Defense, x: Tensor) -> Tensor:
        return defense(x.repeat(2, 1, 1, 1)).view(2, len(x), -1).mean(0)

    target = make()
    target.evaluate(images(), twice, goal(), cost=2)
    target.evaluate(images(2), twice, goal(2), torch.tensor([1, 1]), cost=2)
    assert target.counts.forward.tolist() == target.counts.backward.tolist() == [2, 6, 2]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 512])
def test_small_batches_change_neither_the_counts_nor_the_results(batch_size: int) -> None:
    target = make(n=5, batch_size=batch_size)
    x, whole = images(5), make(n=5)
    assert torch.allclose(target.logits(x), whole.logits(x))
    for cost in (1, 2):
        ours, theirs = (t.evaluate(x, through, goal(5), cost=cost) for t in (target, whole))
        for part in ("loss", "grad", "logits"):
            assert torch.allclose(getattr(ours, part), getattr(theirs, part))
    assert target.counts.forward.tolist() == [4] * 5


def test_passes_are_split_into_batches_of_the_given_size() -> None:
    sizes = []

    class Noting(Defense):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return x.flatten(1)

    target = make(Noting(TINY), n=5, batch_size=2)
    target.logits(images(5))
    assert sizes == [2, 2, 1]
    sizes.clear()
    target.evaluate(images(5), through, goal(5), cost=2)
    assert sizes == [1] * 5


def test_rows_without_an_index_must_be_the_examples() -> None:
    with pytest.raises(InputError, match="target: 2 rows for 3 examples need an index"):
        make().logits(images(2))


# -- gradients that are not there -------------------------------------------------------------------------------


def test_a_cut_graph_gives_a_zero_gradient_and_a_note() -> None:
    target = make()
    at = target.evaluate(images(), lambda defense, x: defense(x.detach()), goal())
    assert at.grad.abs().sum() == 0
    assert at.grad.shape == (3, 1, 2, 2)
    assert target.counts.notes == {"no gradient reaches the input"}
    assert target.counts.zero_gradient.tolist() == [1, 1, 1]


def test_a_graph_that_misses_the_input_counts_as_cut() -> None:
    def elsewhere(defense: Defense, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 4, requires_grad=True)

    target = make()
    assert target.evaluate(images(), elsewhere, goal()).grad.abs().sum() == 0
    assert target.counts.notes == {"no gradient reaches the input"}


def test_a_backward_pass_that_raises_is_noted_and_gives_a_zero_gradient() -> None:
    class Refusing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            raise RuntimeError("no way back\nsecond line")

    target = make()
    at = target.evaluate(images(), lambda defense, x: defense(Refusing.apply(x)), goal())
    assert at.grad.abs().sum() == 0
    assert "backward raised: no way back" in target.counts.notes


def test_nan_entries_of_a_gradient_become_zero_and_are_counted_once_per_example() -> None:
    def broken(defense: Defense, x: Tensor) -> Tensor:
        return defense(x) + torch.sqrt(x[:, :, 0, 0])  # its derivative at 0 is infinite

    x = images() * 0.5 + 0.25
    x[1, 0, 0, 0] = 0
    target = make()
    at = target.evaluate(x, broken, Goal(lambda logits, y, t: logits[:, 0], Y))
    assert torch.isfinite(at.grad).all()
    assert target.counts.nonfinite_gradient.tolist() == [0, 1, 0]
    assert at.grad[1, 0, 0, 1] != 0  # the other entries are kept


def test_rows_with_a_zero_gradient_are_counted_for_their_examples() -> None:
    def partly(defense: Defense, x: Tensor) -> Tensor:
        return defense(x) * torch.tensor([1.0, 0.0, 0.0, 1.0])[:, None]

    target = make()
    target.evaluate(images(4), partly, goal(4), torch.tensor([0, 1, 1, 2]))
    assert target.counts.zero_gradient.tolist() == [0, 2, 0]


# -- errors and memory ------------------------------------------------------------------------------------------


def test_logits_of_the_wrong_shape_are_refused() -> None:
    defense = linear_defense(classes=5)
    defense.data = TINY
    with pytest.raises(InputError, match=r"expected logits of shape \(3, 4\), got \(3, 5\)"):
        make(defense).logits(images())
    with pytest.raises(InputError, match=r"expected logits of shape \(3, 4\), got \(3, 5\)"):
        make(defense).evaluate(images(), through, goal())


class Limited(Defense):
    """Has memory for a few rows at a time."""

    def __init__(self, rows: int) -> None:
        super().__init__(TINY)
        self.rows = rows
        self.classifier = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.classifier(x)


@pytest.mark.parametrize("method", ["logits", "labels", "evaluate"])
def test_the_batch_is_halved_until_it_fits(method: str) -> None:
    target, x = make(Limited(3), n=8), images(8)
    if method == "evaluate":
        assert torch.equal(target.evaluate(x, through, goal(8)).logits, x.flatten(1))
    else:
        expected = x.flatten(1) if method == "logits" else x.flatten(1).argmax(1)
        assert torch.equal(getattr(target, method)(x), expected)
    assert target.batch_size == 2
    assert target.counts.forward.tolist() == [1] * 8  # what did not fit is not counted twice
    assert target.counts.notes == {"out of memory: batch halved to 4", "out of memory: batch halved to 2"}


def test_memory_that_runs_out_in_the_backward_pass_is_no_missing_gradient() -> None:
    class Hungry(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            if len(grad) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return grad

    target = make(n=8)
    at = target.evaluate(images(8), lambda defense, x: defense(Hungry.apply(x)), goal(8))
    assert (at.grad.flatten(1).abs().sum(1) > 0).all()
    assert target.batch_size == 2


@pytest.mark.parametrize("method", ["logits", "evaluate"])
def test_what_does_not_fit_row_by_row_is_out_of_memory(method: str) -> None:
    target = make(Limited(0), n=4)
    with pytest.raises(torch.OutOfMemoryError):
        target.logits(images(4)) if method == "logits" else target.evaluate(images(4), through, goal(4))


def test_a_label_is_that_of_finite_logits_also_where_their_sum_is_none() -> None:
    logits = torch.tensor([[3e38, 2e38, 1.0], [0.0, torch.inf, 1.0], [0.0, 1.0, torch.nan], [0.0, 1.0, 2.0]])
    assert predictions(logits).tolist() == [0, NOT_FINITE, NOT_FINITE, 2]
    assert predictions(logits[::3]).tolist() == [0, 2]
    assert predictions(logits[:0]).tolist() == []
