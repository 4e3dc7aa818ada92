"""scikit-learn's handwritten digits: always there, and small."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.contracts.inputs import DataInfo, InputSpec
from bench.data.splits import Data, Split, balanced_order

#: Of order, ids and splits.
VERSION = 1


def load(root: Path, download: bool) -> Data:
    """scikit-learn's 1797 handwritten digits, 8×8 grey: 450 test, 340 validation, 1007 training examples."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(bunch.images).to(torch.float32)[:, None] / 16
    y = torch.from_numpy(bunch.target).to(torch.int64)
    ids = [f"digits/{i:04d}" for i in range(len(y))]
    order = balanced_order(ids, y.tolist())

    def part(rows: list[int]) -> Split:
        return Split(x[rows], y[rows], [ids[i] for i in rows])

    info = DataInfo("digits", InputSpec((1, 8, 8), levels=17), 10)
    names = [str(i) for i in range(10)]
    return Data(info, names, part(order[790:]), part(order[450:790]), part(order[:450]), VERSION)
