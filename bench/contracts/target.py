"""The target: the only view an attack has of a defense, and the place where passes are counted per example."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from bench.contracts.answers import REJECTED, Evaluation, Jacobian, Objective, Through, predictions
from bench.contracts.defense import Defense
from bench.contracts.detection import Detection
from bench.contracts.errors import InputError, KnowledgeError, NotApplicable
from bench.contracts.levels import Levels
from bench.contracts.passes import Passes
from bench.contracts.threat import Lp, ThreatModel, as_lp
from bench.contracts.words import KNOWLEDGE


class Target(Passes):
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
        super().__init__(defense, n, batch_size)
        self.threat = threat
        self.info = defense.data
        self.knowledge = knowledge
        self.generator = generator
        self.randomized = randomized
        self.prepared = prepared or {}
        self.towards = towards
        #: The whole grey levels that every point is moved to before the defense sees it; None: points stay.
        self._levels: Levels | None = None
        #: The detector's threshold and what has to be achieved with it; None where there is no detector.
        self.detection = None if threshold is None else Detection(threshold, torch.full((n,), 0.5))

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
        scores, grads = self._score_gradient_in_batches(self.snap(x, index))
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
        found = self._jacobian_in_batches(self.snap(x, index), through, classes, cost)
        return Jacobian(found.logits, self._repaired(found.grads, index))

    # -- internals ------------------------------------------------------------------------------------------

    def _require(self, knowledge: str) -> None:
        if KNOWLEDGE.index(knowledge) > KNOWLEDGE.index(self.knowledge):
            raise KnowledgeError(f"a {self.knowledge} attack asked for {knowledge} knowledge of its target")

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
