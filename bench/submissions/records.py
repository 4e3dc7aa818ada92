"""The small files of a bundle beside its rows."""

from __future__ import annotations

from pydantic import Field

from bench.storing.records import Record


class Environment(Record):
    """``environment.json``: where the numbers were made."""

    packages: list[str] = Field(description="every installed distribution, NAME==VERSION, as `pip freeze` says it")
    python: str
    hardware: dict[str, str]
    isolation: str | None = Field(default=None, description="the level under which the defense ran, where recorded")


class ClaimedNumbers(Record):
    """``claim.json`` of a defense: the numbers that its submitter got, in [0, 1]."""

    standard: float
    worst_case: float
    examples: int
    attacks: dict[str, float | None] = Field(description="accuracy that each attack left; None: not applicable")


class ClaimedPoints(Record):
    """``claim.json`` of an attack: the examples, in the order of images.safetensors."""

    ids: list[str]


class Check(Record):
    """One rule of `bench check`, or one cell of `bench verify`."""

    verdict: str
    what: str
    detail: str = ""


class Checks(Record):
    """``checks.json``: what its submitter's own check and verification said."""

    contract: list[Check]
    verified: list[Check]


class CardRecord(Record):
    """``card.json``: how the defense presents itself."""

    title: str = ""
    summary: str = ""
    paper: str = ""
    url: str = ""
    family: str = ""
    tags: list[str] = Field(default=[])
