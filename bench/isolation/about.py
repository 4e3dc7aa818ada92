"""What a model server says of the defense that it holds, when it has loaded it."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from bench.contracts.defense import BareModel, Card, Claim, Picks, count_parameters
from bench.plugins.resolve import LoadedDefense
from bench.storing.digest import state_digest

_Line = Annotated[str, StringConstraints(max_length=10_000)]
_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Claimed(_Said):
    """A :class:`bench.contracts.defense.Claim`."""

    data: _Line
    threat: _Line
    standard: float | None
    robust: float
    attack: _Line
    source: _Line


class Presented(_Said):
    """A :class:`bench.contracts.defense.Card`."""

    title: _Line
    summary: _Line
    paper: _Line
    url: _Line
    family: _Line
    tags: tuple[_Line, ...] = Field(max_length=100)
    claims: tuple[Claimed, ...] = Field(max_length=100)
    breaks: tuple[Claimed, ...] = Field(max_length=100)

    def card(self) -> Card:
        """The card itself."""
        written = {name: getattr(self, name) for name in ("title", "summary", "paper", "url", "family", "tags")}
        claims, breaks = (tuple(Claim(**vars(c)) for c in of) for of in (self.claims, self.breaks))
        return Card(**written, claims=claims, breaks=breaks)


class About(_Said):
    """A defense as its server describes it.

    Attributes:
        kind: what to call it in a message, such as ``defense Mine``.
        approximations: names, and whether the value of each is that of the transform already.
        variants: names of easier versions of its transform.
        guided_by: the class of its guide that the transform goes by; None: it has no guide.
        detects: whether it has a detector; shows_start: whether it shows the noise that its transform starts from.
        weights: digest of these (``state_digest``).
        checkpoint: the file they come from, if any; sha256, training: of that file, and its record.
    """

    kind: Annotated[str, StringConstraints(pattern=r"^(defense|model) \w{1,100}$")]
    card: Presented
    randomized: bool
    detects: bool
    shows_start: bool
    approximations: dict[_Line, bool] = Field(max_length=100)
    variants: tuple[_Line, ...] = Field(default=(), max_length=100)
    guided_by: Picks | None = None
    has_recipe: bool
    parameters: int = Field(ge=0)
    weights: _Digest
    checkpoint: _Line | None
    sha256: _Digest | None
    training: dict[str, Any]
    version: int | _Line
    libraries: dict[_Line, _Line]


def describe(loaded: LoadedDefense) -> About:
    """Ask a defense for what it declares."""
    defense, card = loaded.defense, loaded.defense.card
    bare, guide = isinstance(defense, BareModel), defense.guide()
    named = f"model {type(defense.classifier).__name__}" if bare else f"defense {type(defense).__name__}"
    if not re.fullmatch(r"\w+ \w+", named):  # made by type()
        named = "model Network" if bare else "defense Defense"
    return About(
        kind=named[:100],
        card=Presented(
            title=card.title,
            summary=card.summary,
            paper=card.paper,
            url=card.url,
            family=card.family,
            tags=tuple(card.tags),
            claims=tuple(Claimed(**vars(claim)) for claim in card.claims),
            breaks=tuple(Claimed(**vars(claim)) for claim in card.breaks),
        ),
        randomized=bool(defense.randomized),
        detects=defense.detect is not None,
        shows_start=all(callable(getattr(defense, name, None)) for name in ("sample_start", "transform_from")),
        approximations={name: bool(one.exact_forward) for name, one in defense.approximations().items()},
        variants=tuple(defense.variants()),
        guided_by=None if guide is None else guide.picks,
        has_recipe=defense.has_recipe,
        parameters=count_parameters(defense),
        weights=state_digest(defense),
        checkpoint=None if loaded.checkpoint is None else str(loaded.checkpoint.resolve()),
        sha256=loaded.sha256,
        training=loaded.training,
        version=loaded.version,
        libraries=loaded.libraries,
    )
