"""The digits: scikit-learn's, in balanced order."""

from __future__ import annotations

import numpy as np
import torch

from bench.contracts.inputs import check_inputs, check_labels
from bench.data.load import load_data


def test_digits_splits_are_disjoint_and_cover_everything() -> None:
    data = load_data("digits")
    ids = [*data.train.ids, *data.validation.ids, *data.test.ids]
    assert len(ids) == len(set(ids)) == 1797
    assert (len(data.train), len(data.validation), len(data.test)) == (1007, 340, 450)
    for split in (data.train, data.validation, data.test):
        check_inputs(split.x, data.info.input)
        check_labels(split.y, 10)
        assert split.x.dtype == torch.float32
        assert split.x.shape[1:] == data.info.shape == (1, 8, 8)
    assert data.test.x.max() == 1


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    raw = load_digits()
    test = load_data("digits").test
    for i in (0, 7, 449):
        index = int(test.ids[i].removeprefix("digits/"))
        assert test.y[i] == raw.target[index]
        assert np.array_equal(test.x[i, 0].numpy() * 16, raw.images[index])


def test_every_prefix_is_balanced() -> None:
    test = load_data("digits").test
    for n in (10, 50, 450):
        assert test.take(n).y.bincount(minlength=10).tolist() == [n // 10] * 10
    assert test.y[:20].tolist() != sorted(test.y[:20].tolist())
    few, many = test.take(7), test.take(30)
    assert few.ids == many.ids[:7]
    assert torch.equal(few.x, many.x[:7])
    assert test.take(10_000) is test
