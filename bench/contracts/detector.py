"""The detector contract: a score that tells adversarial inputs from clean ones, in front of any classifier.

A defense whose detector belongs to its own network overrides ``Defense.detect``. A :class:`Detector` stands alone:
:class:`WithDetector` puts it in front of a classifier, and what comes out is a defense like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from bench.contracts.defense import Approximation, Card, Defense, Guide, freeze
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from bench.contracts.words import KINDS

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun


class Detector(nn.Module):
    """Base class of detectors that stand alone. Subclasses override ``detect``, and ``fit`` where there is training.

    Where the command line takes a defense it takes a detector as well, by name, file or module;
    ``--set classifier=NAME`` says which defense classifies behind it (default ``none``, an undefended network).

    Args:
        data: name, input shape and class count of the data set.
        **params: the variant; a subclass names its own keyword arguments (any but ``classifier``).
    """

    card: Card = Card()
    #: True when two scores of one input may differ.
    randomized: bool = False
    #: Of how it scores, as ``Defense.version``.
    version: ClassVar[int | None] = None
    #: Of the recipe, as ``Defense.recipe_version``.
    recipe_version: int = 1
    #: Whether the recipe uses ``run.threat``, as ``Defense.trains_in_ball``.
    trains_in_ball: bool = True
    #: As ``Defense.kinds``.
    kinds: ClassVar[tuple[str, ...]] = KINDS
    #: As ``Defense.depends``.
    depends: tuple[str, ...] = ()

    def __init__(self, data: DataInfo) -> None:
        super().__init__()
        self.data = data
        # In a tuple, which torch does not look into: the weights of what is guarded are not the detector's own.
        self._guarded: tuple[Defense, ...] = ()

    def guard(self, defense: Defense) -> None:
        """Take its place in front of ``defense``, before any weights are loaded or trained.

        A detector that reads the activations of what it guards overrides this to find its layers and to make buffers
        of their size, and calls it first.
        """
        self._guarded = (defense,)

    @property
    def guarded(self) -> Defense:
        """The defense that it stands in front of, for a score made of its outputs or activations."""
        if not self._guarded:
            raise InputError(f"detector {type(self).__name__}: stands in front of no classifier; call guard first")
        return self._guarded[0]

    def detect(self, x: Tensor) -> Tensor:
        """Scores ``(N,)`` of inputs ``(N, ...)``: larger = more likely adversarial.

        The threshold above which an input is rejected is not its own: the harness sets it once, on clean validation
        data, at the suite's false-positive rate.
        """
        raise InputError(f"detector {type(self).__name__}: detect is not implemented")

    def fit(self, run: TrainingRun, classifier: Defense) -> None:
        """Train in place from ``run.train``.

        Args:
            run: data, threat model and the loop (see :class:`bench.training.recipe.TrainingRun`).
            classifier: what it will stand in front of: trained, in evaluation mode, its parameters frozen. For a
                detector that learns from adversarial examples of it, or from its activations.
        """
        raise InputError(f"detector {type(self).__name__} has no training recipe (fit is not implemented)")

    def forward(self, x: Tensor) -> Tensor:
        """The scores of :meth:`detect`."""
        return self.detect(x)

    @property
    def has_recipe(self) -> bool:
        """Whether its weights come from :meth:`fit`."""
        return type(self).fit is not Detector.fit


class WithDetector(Defense):
    """A defense with a detector in front of it: its logits, the detector's score.

    Args:
        detector: decides what is rejected.
        defense: decides the class of what is not; it has no detector of its own.
    """

    def __init__(self, detector: Detector, defense: Defense) -> None:
        super().__init__(defense.data)
        if defense.detect is not None:
            raise InputError(f"classifier {defense.author.__name__}: has a detector of its own already")
        detector.guard(defense)
        self.detector = detector
        self.defense = defense
        self.card = detector.card
        self.randomized = detector.randomized or defense.randomized
        self.depends = (*detector.depends, *defense.depends)
        trained = [part for part in (detector, defense) if part.has_recipe]
        self.recipe_version = "+".join(str(part.recipe_version) for part in trained)
        self.trains_in_ball = any(part.trains_in_ball for part in trained)
        #: Whether the classifier's weights are those of its own checkpoint, and the detector's alone in this one's.
        self.borrows = defense.data.large and defense.has_recipe

    @property
    def classifier(self) -> nn.Module:  # type: ignore[override]
        """f of the defense behind the detector."""
        return self.defense.classifier

    @property
    def author(self) -> type:
        """The detector's class."""
        return type(self.detector)

    @property
    def has_recipe(self) -> bool:
        """Whether the detector or the defense has one."""
        return self.detector.has_recipe or self.defense.has_recipe

    def transform(self, x: Tensor) -> Tensor:
        """g of the defense behind the detector."""
        return self.defense.transform(x)

    def forward(self, x: Tensor) -> Tensor:
        """The defense's logits, whatever the detector thinks of x."""
        return self.defense(x)

    def approximations(self) -> dict[str, Approximation]:
        """Those of the defense."""
        return self.defense.approximations()

    def variants(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Those of the defense."""
        return self.defense.variants()

    def guide(self) -> Guide | None:
        """That of the defense."""
        return self.defense.guide()

    def detect(self, x: Tensor) -> Tensor:
        """The detector's scores ``(N,)``."""
        return self.detector.detect(x)

    def fit(self, run: TrainingRun) -> None:
        """Train the defense by its own recipe, to the weights that it has without a detector; then the detector.

        Where it ``borrows``, the defense has its weights already and keeps them.
        """
        if self.defense.has_recipe and not self.borrows:
            self.defense.fit(run)
        freeze(self.defense)
        if self.detector.has_recipe:
            self.detector.fit(run, self.defense)
