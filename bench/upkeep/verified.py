"""Keep what `bench verify` found, for the site."""

from __future__ import annotations

from collections.abc import Sequence

from bench.contracts.inputs import InputSpec
from bench.storing.provenance import Clock, finish
from bench.storing.records import SuiteRecord
from bench.storing.store import Store
from bench.storing.verified import VerificationRecord, write_verification
from bench.upkeep.rounding import Rounding, levels_of
from bench.upkeep.verify import Verdict


def keep(store: Store, suite: SuiteRecord, verdicts: Sequence[Verdict], clock: Clock, device: str) -> list[str]:
    """Write ``verified.json`` of each defense that all of could be judged again; returns their names.

    Args:
        verdicts: of all cells of the defenses that they speak of; clock: from before they were made.
    """
    spec = InputSpec(suite.shape, suite.low, suite.high, suite.kind, suite.levels)
    kept = []
    for key in {verdict.defense: verdict.key for verdict in verdicts if verdict.key is not None}.values():
        own = [verdict for verdict in verdicts if verdict.defense == key.name]
        if any(verdict.problem or verdict.note for verdict in own):
            continue
        rounding = sum((verdict.rounding for verdict in own), Rounding())
        write_verification(
            store,
            VerificationRecord(
                defense=key,
                judged=sum(verdict.rows for verdict in own),
                different=sum(verdict.different for verdict in own),
                levels=levels_of(spec),
                rounded=rounding.rows,
                survive=rounding.survive,
                fall=rounding.fall,
                provenance=finish(clock, device),
            ),
        )
        kept.append(key.name)
    return kept
