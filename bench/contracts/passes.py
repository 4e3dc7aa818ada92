"""Passes of a defense: in batches that fit into memory, counted per example, with what befalls gradients on the way."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bench.contracts.answers import Evaluation, Jacobian, Objective, Through, select
from bench.contracts.counting import no_counts
from bench.contracts.defense import Defense, check_logits
from bench.contracts.errors import InputError


class Passes:
    """What a :class:`bench.contracts.target.Target` is built on.

    Args:
        defense: in evaluation mode; n: examples of the shard; batch_size: rows per pass, halved when memory runs out.
    """

    def __init__(self, defense: Defense, n: int, batch_size: int) -> None:
        self.n = n
        self.num_classes = defense.data.num_classes
        self.batch_size = batch_size
        self.counts = no_counts(n)
        self._defense = defense
        #: The examples of the whole shard that the rows of a subset stand for.
        self._examples: Tensor | None = None

    def examples(self, index: Tensor | None = None) -> Tensor:
        """The example of the whole shard that each row belongs to, int64 ``(M,)`` on the CPU.

        Args:
            index: the example of this target; None: all in order.
        """
        if self._examples is None:
            return torch.arange(self.n) if index is None else index.cpu()
        return self._examples if index is None else self._examples[index.cpu()]

    # -- counting -------------------------------------------------------------------------------------------

    def _count(
        self, what: str, index: Tensor | None, mask: Tensor | None = None, cost: int = 1
    ) -> None:
        if mask is not None:
            index = (torch.arange(self.n) if index is None else index.cpu())[mask.cpu()]
        self.counts.add(what, index, self._examples, cost)

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

    # -- without gradients ----------------------------------------------------------------------------------

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

    # -- with gradients -------------------------------------------------------------------------------------

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

    def _jacobian_in_batches(self, x: Tensor, through: Through, classes: Tensor | None, cost: int) -> Jacobian:
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
        if len(parts) == 1:
            return parts[0]
        return Jacobian(torch.cat([p.logits for p in parts]), torch.cat([p.grads for p in parts]))

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

    def _score_gradient_in_batches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        while True:
            try:
                parts = [self._score_rows(part) for part in x.split(self.batch_size)]
            except torch.OutOfMemoryError:
                self._halve(len(x))
                continue
            break
        scores, grads = (torch.cat(values) for values in zip(*parts, strict=True))
        return scores, grads

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
