"""The target: the only view an attack has of a defense, and the place where passes are counted per example."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bench.contracts.counting import no_counts
from bench.contracts.defense import Defense, check_logits
from bench.contracts.detection import Detection
from bench.contracts.errors import InputError, KnowledgeError, NotApplicable
from bench.contracts.levels import Levels
from bench.contracts.threat import Lp, ThreatModel, as_lp
from bench.contracts.words import KNOWLEDGE

#: A differentiable path from images to logits: ``(defense, x) -> logits``.
Through = Callable[[Defense, Tensor], Tensor]


class Objective(Protocol):
    """What a gradient attack maximises: logits ``(M, K)`` to one value per row ``(M,)``."""

    def __call__(self, logits: Tensor) -> Tensor: ...

    def at(self, rows: slice) -> Objective:
        """The objective of a slice of the rows."""
        ...


#: The label :meth:`Target.labels` gives to an input that the defense's detector rejects.
REJECTED = -1
#: The label of an output that contains NaN or infinity: no class at all, and so a wrong one.
NOT_FINITE = -2


def predictions(logits: Tensor) -> Tensor:
    """Labels ``(M,)`` of ``logits (M, K)``; :data:`NOT_FINITE` where a logit is NaN or infinite."""
    labels = logits.argmax(1)
    # A finite sum has finite terms, and takes less time than a look at each.
    if math.isfinite(logits.sum().item()):
        return labels
    return torch.where(torch.isfinite(logits).all(1), labels, NOT_FINITE)


def select(logits: Tensor, classes: Tensor | None) -> Tensor:
    """``(M, k)`` of ``logits (M, K)``: all of them (None), the ``classes`` (int64 ``(M, k)``) or the sums weighted by
    ``classes`` (floating ``(M, k, K)``)."""
    if classes is None:
        return logits
    if classes.is_floating_point():
        return torch.bmm(classes, logits[:, :, None]).squeeze(2)
    return logits.gather(1, classes)


@dataclass
class Evaluation:
    """One gradient evaluation: ``loss (M,)``, ``grad`` shaped like x, and ``logits (M, K)``.

    ``scores (M,)`` are the detector's, where it was taken into account: loss and gradient are then those of the joint
    objective (``bench.contracts.detection``).
    """

    loss: Tensor
    grad: Tensor
    logits: Tensor
    scores: Tensor | None = None


@dataclass
class Jacobian:
    """Logits ``(M, K)`` and the gradients ``(M, k, …)`` of k of them, or sums, with respect to the input."""

    logits: Tensor
    grads: Tensor


class Target:
    """A defense as seen by an attack with a given knowledge.

    Args:
        defense: the defense, in evaluation mode.
        threat: which inputs are allowed.
        n: number of examples in the shard. Every method takes rows ``x (M, …)`` and ``index (M,)``: the
            example each row belongs to, so that passes are counted per example; without ``index`` the rows are
            the examples 0 … n-1 in order.
        knowledge: ``transfer``, ``decision``, ``score`` or ``gradient``; asking for more raises
            :class:`KnowledgeError`.
        randomized: whether two passes of one input may differ.
        threshold: the detector's fixed threshold; None when there is no detector.
        prepared: tensors from the attack's preparation.
        batch_size: rows per pass; halved when memory runs out.
        towards: int64 ``(n,)``, the class each example has to reach in a targeted attack; None: any but y.
    """

    def __init__(
        self,
        defense: Defense,
        threat: ThreatModel,
        n: int,
        *,
        knowledge: str,
        generator: torch.Generator,
        randomized: bool = False,
        threshold: float | None = None,
        prepared: dict[str, Tensor] | None = None,
        batch_size: int = 512,
        towards: Tensor | None = None,
    ) -> None:
        self.threat = threat
        self.n = n
        self.info = defense.data
        self.num_classes = defense.data.num_classes
        self.knowledge = knowledge
        self.generator = generator
        self.randomized = randomized
        self.prepared = prepared or {}
        self.batch_size = batch_size
        self.towards = towards
        self.counts = no_counts(n)
        self._defense = defense
        #: The whole grey levels that every point is moved to before the defense sees it; None: points stay.
        self._levels: Levels | None = None
        #: The detector's threshold and what has to be achieved with it; None where there is no detector.
        self.detection = None if threshold is None else Detection(threshold, torch.full((n,), 0.5))
        #: The examples of the whole shard that the rows of a subset stand for.
        self._examples: Tensor | None = None

    @property
    def ball(self) -> Lp:
        """The threat model of an attack that is made for Lp balls; raises :class:`NotApplicable` for any other."""
        return as_lp(self.threat)

    def subset(self, index: Tensor, knowledge: str | None = None) -> Target:
        """The same target for some of its examples, which then count as 0 … len(index)-1.

        Passes are counted where they were before, for the example they belong to.

        Args:
            index: the examples, int64 ``(M,)``.
            knowledge: at most that of this target, which is the default.
        """
        if knowledge is not None:
            self._require(knowledge)
        part = copy.copy(self)
        part.n = len(index)
        part.knowledge = knowledge or self.knowledge
        part.towards = None if self.towards is None else self.towards[index]
        part._examples = index.cpu() if self._examples is None else self._examples[index.cpu()]
        part._levels = None if self._levels is None else self._levels.at(index)
        return part

    def without_detector(self) -> Target:
        """The same target as if it rejected nothing. Passes are counted where they were before."""
        part = copy.copy(self)
        part.detection = None
        return part

    def on_levels(self, x: Tensor) -> Target:
        """The same target in the space of whole grey levels: every point is moved to levels before it is looked at.

        Gradients are those at the level, as if moving there were the identity. :meth:`snap` moves the points that an
        attack returns.

        Args:
            x: the examples, ``(n, …)``, around which the levels have to lie in the ball.

        Raises:
            NotApplicable: where the data's grey levels are not known.
        """
        if self.info.input.levels is None:
            raise NotApplicable(f"the grey levels of {self.info.name} are not known")
        part = copy.copy(self)
        part._levels = Levels(self.info.input, self.threat, x)
        return part

    def snap(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """``x`` on the whole levels of :meth:`on_levels`; as it is on any other target."""
        return x if self._levels is None else self._levels.snapped(x, index)

    def examples(self, index: Tensor | None = None) -> Tensor:
        """The example of the whole shard that each row belongs to, int64 ``(M,)`` on the CPU.

        Args:
            index: the example of this target; None: all in order.
        """
        if self._examples is None:
            return torch.arange(self.n) if index is None else index.cpu()
        return self._examples if index is None else self._examples[index.cpu()]

    # -- what every knowledge allows ------------------------------------------------------------------------

    @property
    def rejects(self) -> bool:
        """Whether the defense has a detector that rejects inputs."""
        return self.detection is not None

    def rand(self, *shape: int, like: Tensor) -> Tensor:
        """Uniform [0, 1) draws from the attack's generator, on the device and in the dtype of ``like``."""
        return torch.rand(shape, generator=self.generator).to(like)

    def randn(self, *shape: int, like: Tensor) -> Tensor:
        """Standard normal draws from the attack's generator, on the device and in the dtype of ``like``."""
        return torch.randn(shape, generator=self.generator).to(like)

    # -- decision -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def labels(self, x: Tensor, index: Tensor | None = None, *, draws: int = 1) -> Tensor:
        """Predicted labels ``(M,)``: the majority of ``draws`` passes; ``-1`` (REJECTED) where rejected, ``-2``
        (NOT_FINITE) where the logits are not numbers."""
        self._require("decision")
        if draws == 1:
            return self._one_draw(x, index)
        votes = torch.stack([self._one_draw(x, index) for _ in range(draws)])
        return votes.mode(0).values

    def is_adversarial(self, x: Tensor, y: Tensor, index: Tensor | None = None, *, draws: int = 1) -> Tensor:
        """Bool ``(M,)``: in most of ``draws`` passes misclassified (``y``: a label per row) and not rejected.

        In a targeted attack: classified as the class to reach.
        """
        self._require("decision")
        hits = torch.zeros(len(x), device=x.device)
        with torch.no_grad():
            for _ in range(draws):
                labels = self._one_draw(x, index)
                hits += self._hit(labels, y, index) & (labels != REJECTED)
        return hits > draws / 2

    # -- score ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def logits(self, x: Tensor, index: Tensor | None = None, *, draws: int = 1) -> Tensor:
        """Logits ``(M, K)``, the mean of ``draws`` passes."""
        self._require("score")
        x = self.snap(x, index)
        total = self._forward(x, index)
        if draws == 1:
            return total
        for _ in range(draws - 1):
            total = total + self._forward(x, index)
        return total / draws

    @torch.no_grad()
    def scores(self, x: Tensor, index: Tensor | None = None, *, draws: int = 1) -> Tensor:
        """The detector's scores ``(M,)``, the mean of ``draws`` passes; above ``detection.threshold`` x is rejected.

        A pass of the detector counts as one of the defense.

        Raises:
            InputError: where there is no detector (``rejects`` is False).
        """
        self._require("score")
        if self.detection is None:
            raise InputError("target: has no detector whose scores could be asked for")
        self._count("forward", index, cost=draws)
        x = self.snap(x, index)
        return torch.stack([self._scores(x) for _ in range(draws)]).mean(0)

    @torch.no_grad()
    def fooled(
        self, logits: Tensor, x: Tensor, y: Tensor, index: Tensor | None = None, scores: Tensor | None = None
    ) -> Tensor:
        """Bool ``(M,)``: ``logits`` (of ``x``) miss ``y`` and the detector, if any, accepts ``x``.

        In a targeted attack: they point to the class to reach.

        An optimiser uses it to stop early; whether an attack succeeded is the judge's decision alone.

        Args:
            scores: of ``x``, where they are known already; else the detector is asked where the logits are wrong.
        """
        self._require("score")
        wrong = self._hit(predictions(logits), y, index)
        if self.detection is None:
            return wrong
        if scores is not None:
            return wrong & self.detection.accepts(scores)
        if wrong.any():
            self._count("forward", index, wrong)
            wrong[wrong.clone()] = self.detection.accepts(self._scores(self.snap(x, index)[wrong]))
        return wrong

    # -- gradient -------------------------------------------------------------------------------------------

    @property
    def defense(self) -> Defense:
        """The defense itself, for white-box attacks."""
        self._require("gradient")
        return self._defense

    def evaluate(
        self, x: Tensor, through: Through, objective: Objective, index: Tensor | None = None, *, cost: int = 1
    ) -> Evaluation:
        """Loss, gradient with respect to the input, and logits along a differentiable path.

        Args:
            x: ``(M, …)``.
            through: ``(defense, x) -> logits``.
            objective: what to maximise (see ``attacks.toolkit.losses.Goal``).
            index: the example of each row.
            cost: passes of the defense that one row takes inside ``through``.

        A cut graph or a backward pass that raises gives a zero gradient and is noted; NaN and infinite entries
        of a gradient are replaced by zero and counted.
        """
        self._require("gradient")
        self._count("forward", index, cost=cost)
        self._count("backward", index, cost=cost)
        result = self._evaluate_in_batches(self.snap(x, index), through, objective, cost)
        result.grad = self._repaired(result.grad, index)
        return result

    def score_gradient(self, x: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The detector's scores ``(M,)`` and their gradients, shaped like x, by plain automatic differentiation.

        Costs a forward and a backward pass. What is not finite is treated as in :meth:`evaluate`; where no gradient
        arrives, or it is zero, the rows of the gradient are zero, which is not counted: a detector that is content may
        be flat.

        Raises:
            InputError: where there is no detector.
        """
        self._require("gradient")
        if self.detection is None:
            raise InputError("target: has no detector whose score could be differentiated")
        self._count("forward", index)
        self._count("backward", index)
        x = self.snap(x, index)
        while True:
            try:
                parts = [self._score_rows(part) for part in x.split(self.batch_size)]
            except torch.OutOfMemoryError:
                self._halve(len(x))
                continue
            break
        scores, grads = (torch.cat(values) for values in zip(*parts, strict=True))
        bad = ~torch.isfinite(grads.flatten(1)).all(1)
        if bad.any():
            grads = torch.nan_to_num(grads, nan=0.0, posinf=0.0, neginf=0.0)
            self._count("nonfinite_gradient", index, bad)
        return scores, grads

    def jacobian(
        self,
        x: Tensor,
        through: Through,
        index: Tensor | None = None,
        *,
        classes: Tensor | None = None,
        cost: int = 1,
    ) -> Jacobian:
        """Logits and the gradients of some along a differentiable path, from one forward pass.

        Args:
            x: ``(M, …)``.
            through: ``(defense, x) -> logits``.
            index: the example of each row.
            classes: what to differentiate in each row: k of its logits (int64 ``(M, k)``), k weighted sums of them
                (floating ``(M, k, K)``), or all of them in order (None).
            cost: passes of the defense that one row takes inside ``through``.

        Counts one forward and k backward passes. Cut graphs and values that are not finite are treated as in
        :meth:`evaluate`.
        """
        self._require("gradient")
        number = self.num_classes if classes is None else classes.shape[1]
        self._count("forward", index, cost=cost)
        self._count("backward", index, cost=cost * number)
        x = self.snap(x, index)
        while True:
            rows = max(1, self.batch_size // cost)
            try:
                parts = [
                    self._jacobian_rows(x[i : i + rows], through, None if classes is None else classes[i : i + rows])
                    for i in range(0, max(1, len(x)), rows)
                ]
            except torch.OutOfMemoryError:
                self._halve(len(x) * cost)
                continue
            break
        grads = torch.cat([p.grads for p in parts]) if len(parts) > 1 else parts[0].grads
        logits = torch.cat([p.logits for p in parts]) if len(parts) > 1 else parts[0].logits
        return Jacobian(logits, self._repaired(grads, index))

    # -- internals ------------------------------------------------------------------------------------------

    def _require(self, knowledge: str) -> None:
        if KNOWLEDGE.index(knowledge) > KNOWLEDGE.index(self.knowledge):
            raise KnowledgeError(f"a {self.knowledge} attack asked for {knowledge} knowledge of its target")

    def _repaired(self, grad: Tensor, index: Tensor | None) -> Tensor:
        """``grad`` with zeros for what is not finite; both that and zero gradients are counted."""
        size = grad.flatten(1).abs().sum(1)
        if not len(size) or (size.min().item() > 0 and size.max().item() < math.inf):
            return grad
        bad = ~torch.isfinite(size)
        if bad.any():
            grad = torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)
            self._count("nonfinite_gradient", index, bad)
        zero = size == 0
        if zero.any():
            self._count("zero_gradient", index, zero)
        return grad

    def _count(
        self, what: str, index: Tensor | None, mask: Tensor | None = None, cost: int = 1
    ) -> None:
        if mask is not None:
            index = (torch.arange(self.n) if index is None else index.cpu())[mask.cpu()]
        self.counts.add(what, index, self._examples, cost)

    def _one_draw(self, x: Tensor, index: Tensor | None) -> Tensor:
        x = self.snap(x, index)
        labels = predictions(self._forward(x, index))
        if self.detection is not None:
            # Deployed, a detector answers in the same query; its passes are part of it.
            labels[~self.detection.accepts(self._scores(x))] = REJECTED
        return labels

    def _hit(self, labels: Tensor, y: Tensor, index: Tensor | None) -> Tensor:
        if self.towards is None:
            return labels != y
        return labels == (self.towards if index is None else self.towards[index])

    def _forward(self, x: Tensor, index: Tensor | None) -> Tensor:
        if index is None and len(x) != self.n:
            raise InputError(f"target: {len(x)} rows for {self.n} examples need an index")
        self._count("forward", index)
        return self._in_batches(x, self._checked)

    def _scores(self, x: Tensor) -> Tensor:
        assert self._defense.detect is not None
        return self._in_batches(x, self._defense.detect)

    def _checked(self, x: Tensor) -> Tensor:
        logits = self._defense(x)
        check_logits(logits, len(x), self.num_classes)
        return logits

    def _in_batches(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        while True:
            try:
                if len(x) <= self.batch_size:
                    return function(x)
                return torch.cat([function(part) for part in x.split(self.batch_size)])
            except torch.OutOfMemoryError:
                self._halve(len(x))

    def _halve(self, rows: int) -> None:
        self.batch_size = min(self.batch_size, rows) // 2
        if self.batch_size < 1:
            raise
        torch.cuda.empty_cache()
        self.counts.notes.add(f"out of memory: batch halved to {self.batch_size}")

    def _evaluate_in_batches(self, x: Tensor, through: Through, objective: Objective, cost: int) -> Evaluation:
        while True:
            rows = max(1, self.batch_size // cost)
            try:
                if len(x) <= rows:
                    return self._evaluate_rows(x, through, objective)
                parts = [
                    self._evaluate_rows(x[i : i + rows], through, objective.at(slice(i, i + rows)))
                    for i in range(0, len(x), rows)
                ]
            except torch.OutOfMemoryError:
                self._halve(len(x) * cost)
                continue
            return Evaluation(
                torch.cat([p.loss for p in parts]),
                torch.cat([p.grad for p in parts]),
                torch.cat([p.logits for p in parts]),
            )

    def _jacobian_rows(self, x: Tensor, through: Through, classes: Tensor | None) -> Jacobian:
        x = x.detach().requires_grad_()
        number = self.num_classes if classes is None else classes.shape[1]
        with torch.enable_grad():
            logits = through(self._defense, x)
            check_logits(logits, len(x), self.num_classes)
            sums = select(logits, classes).sum(0)
        grads = []
        for k in range(number):
            grad = self._gradient(sums[k], x, retain=k + 1 < number)
            grads.append(torch.zeros_like(x) if grad is None else grad)
        return Jacobian(logits.detach(), torch.stack(grads, 1))

    def _score_rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert self._defense.detect is not None
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            scores = self._defense.detect(x)
            grad = self._gradient(scores.sum(), x, of=" from the detector's score")
        return scores.detach(), torch.zeros_like(x) if grad is None else grad

    def _gradient(self, value: Tensor, x: Tensor, retain: bool = False, of: str = "") -> Tensor | None:
        """The gradient of ``value`` in ``x``; None, with a note, where none arrives."""
        grad = None
        if value.requires_grad:
            try:
                (grad,) = torch.autograd.grad(value, x, allow_unused=True, retain_graph=retain)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self.counts.notes.add(f"backward{of} raised: {str(error).splitlines()[0]}")
        if grad is None:
            self.counts.notes.add("no gradient reaches the input" + of)
        return grad

    def _evaluate_rows(self, x: Tensor, through: Through, objective: Objective) -> Evaluation:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = through(self._defense, x)
            check_logits(logits, len(x), self.num_classes)
            loss = objective(logits)
            grad = self._gradient(loss.sum(), x)
        if grad is None:
            grad = torch.zeros_like(x)
        return Evaluation(loss.detach(), grad, logits.detach())
