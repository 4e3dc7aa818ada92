"""What a classifier gets right that looks at no input, and whether another one does better than that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import bdtrc

#: How often a classifier at chance may be taken for a better one.
ALPHA = 0.01
#: What usually makes a trained model guess, in the order in which to look.
CAUSES = (
    "inputs normalised twice or not at all, or expected in 0..255; channels or labels in another order; "
    "a part left in training mode; weights not loaded"
)


@dataclass(frozen=True)
class Chance:
    """The better of two blind guesses: at random among all classes, or always the class that is most frequent.

    Attributes:
        share: what it gets right of ``n`` examples.
        n: how many examples there are.
    """

    share: float
    n: int

    @staticmethod
    def of(labels: Sequence[int], num_classes: int) -> Chance:
        """Chance on examples with these labels, of which there is at least one."""
        return Chance(max(1 / num_classes, max(Counter(labels).values()) / len(labels)), len(labels))

    def beaten_by(self, hits: int) -> bool:
        """Whether so many right of n are more than chance: by the exact one-sided binomial test, at :data:`ALPHA`."""
        return hits > 0 and float(bdtrc(hits - 1, self.n, self.share)) <= ALPHA  # P(at least hits)

    @property
    def can_be_beaten(self) -> bool:
        """False where even all n right would prove nothing: so few are they, or all of one class."""
        return self.beaten_by(self.n)
