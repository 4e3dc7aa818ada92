"""What all benchmarks need."""

from __future__ import annotations

import pytest
from harness.figures import Figure, Note, keep


@pytest.fixture
def measured(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Note:
    """Called with each figure of a benchmark: prints it, and keeps it for ``make bench``."""

    def note(figure: Figure) -> None:
        keep(request.node.user_properties, figure)
        goal = "" if figure.goal is None else f" (goal {figure.goal:g})"
        with capsys.disabled():
            print(f"\n{figure.what}: {figure.ratio:.3f}{goal}, {figure.of}; {figure.values}; {figure.sample}")

    return note
