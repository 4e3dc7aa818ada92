"""The row of a result: what the judge says about one example under one attack.

Apart from the other records, so that a change to those does not change the judge, and with it the key of every result.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """Base of all records: unknown fields are refused, so that a typo cannot hide."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(Record):
    """One example under one attack.

    ``robust`` counts draws in which the attack did not get through: right, or rejected by the detector. For
    ``clean`` a draw counts only when it is right *and* accepted. A deterministic defense has one draw.
    """

    id: str
    label: int
    prediction: int = Field(description="first reporting draw; -1 where the output was not finite")
    select_correct: int = Field(description="draws classified rightly, of draws_select")
    select_robust: int = Field(description="draws survived, of draws_select: to choose the worst attack")
    report_robust: int = Field(description="draws survived, of draws_report: to score it")
    report_correct: int = Field(description="draws classified rightly whatever the detector says")
    report_rejected: int = Field(description="draws rejected by the detector")
    report_caught: int = Field(description="draws misclassified and rejected")
    detector_score: float | None = Field(description="mean over the reporting draws")
    linf: float
    l2: float
    l1: float
    l0: int
    forward: int = Field(description="forward passes of the defense spent on this example")
    backward: int = Field(description="backward passes")
    zero_gradient: int = Field(description="gradients that were exactly zero")
    nonfinite_gradient: int = Field(description="gradients with NaN or infinite entries")
    reason: str = Field(description="ok, or why the judge refused x_adv (then the row scores as the clean input)")
