"""Data sets from outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.contracts.errors import InputError
from bench.contracts.inputs import InputSpec, check_inputs, check_labels
from bench.data.load import load_data


def test_a_function_can_be_a_data_set() -> None:
    file = Path(__file__).parents[2] / "helpers" / "waveforms.py"
    data = load_data(f"{file}:tones")
    assert data.info.input == InputSpec((1, 64), -1.0, 1.0, "waveform")
    assert load_data(f"{file}:tones") is data, "called once"
    for split in (data.train, data.validation, data.test):
        check_inputs(split.x, data.info.input)
        check_labels(split.y, data.info.num_classes)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("plugin.py:missing", "defines no 'missing'"),
        ("plugin.py:number", "expected a function that returns Data, got int"),
        ("plugin.py:nothing", "returned NoneType, expected bench.data.splits.Data"),
        ("plugin.py:broken", "raised ZeroDivisionError: division by zero"),
        ("absent.py:tones", "no such file"),
        ("no.such.module:tones", "'no.such.module' does not exist"),
    ],
)
def test_a_function_that_gives_no_data_set_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, message: str
) -> None:
    (tmp_path / "plugin.py").write_text("number = 1\ndef nothing(): pass\ndef broken(): return 1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        load_data(reference)
