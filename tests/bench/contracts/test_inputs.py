"""What inputs look like, and the checks of inputs and labels."""

from __future__ import annotations

import math

import pytest
import torch

from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec, check_inputs, check_labels

IMAGE = InputSpec((1, 2, 2))


def test_the_shape_of_the_data_is_that_of_an_input() -> None:
    assert DataInfo("toy", InputSpec((2, 16), -1.0, 1.0, "waveform"), 3).shape == (2, 16)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (((),), r"input shape: \(\) must be sizes of at least 1"),
        (((1, 0),), r"input shape: \(1, 0\)"),
        (((4,), 1.0, 1.0), "low 1.0 must be below high 1.0"),
        (((4,), -math.inf, 1.0), "both finite"),
        (((4,), 0.0, 1.0, "video"), "'video' is not one of image, waveform"),
    ],
)
def test_an_impossible_input_is_refused(given: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        InputSpec(*given)


def test_a_batch_is_held_against_the_box_of_its_data() -> None:
    wave = InputSpec((1, 3), -1.0, 1.0, "waveform")
    check_inputs(torch.tensor([[[-1.0, 0.0, 1.0]]]), wave)
    with pytest.raises(InputError, match=r"waves: values span \[-1.5, 0\], outside \[-1, 1\]"):
        check_inputs(torch.tensor([[[-1.5, 0.0, 0.0]]]), wave, "waves")
    with pytest.raises(InputError, match=r"expected floating-point \(N, 1, 3\), got torch.float32 \(1, 1, 4\)"):
        check_inputs(torch.zeros(1, 1, 4), wave)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 3), r"expected floating-point \(N, 1, 2, 2\), got torch.float32 \(2, 3\)"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), "got torch.uint8"),
        (torch.full((1, 1, 2, 2), math.nan), "contain NaN or infinity"),
        (torch.full((1, 1, 2, 2), 1.5), r"values span \[1.5, 1.5\], outside \[0, 1\]"),
        (torch.full((1, 1, 2, 2), -0.1), r"outside \[0, 1\]"),
    ],
)
def test_bad_images_are_refused(x: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_inputs(x, IMAGE)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.tensor([0, 4]), r"label 4 is outside 0\.\.3"),
        (torch.tensor([-1, 0]), r"label -1 is outside 0\.\.3"),
        (torch.tensor([0.0]), r"expected int64 \(N,\), got torch.float32"),
        (torch.zeros(2, 1, dtype=torch.int64), r"expected int64 \(N,\)"),
    ],
)
def test_bad_labels_are_refused(y: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_labels(y, 4)


def test_good_images_and_labels_pass() -> None:
    check_inputs(torch.tensor([[[[0.0, 1.0], [0.5, 0.25]]]]), IMAGE)
    check_inputs(torch.zeros(0, 1, 2, 2), IMAGE)
    check_labels(torch.tensor([0, 3]), 4)
    check_labels(torch.zeros(0, dtype=torch.int64), 4)
