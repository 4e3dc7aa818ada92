"""Order, validation and digest."""

from __future__ import annotations

import torch

from bench.data.splits import Split, balanced_order, data_digest, validation_ids


def test_digest_changes_with_pixels_labels_and_ids() -> None:
    base = Split(torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]), ["a", "b"])
    pixel = Split(torch.zeros(2, 1, 2, 2).index_fill(0, torch.tensor([1]), 0.5), base.y, base.ids)
    label = Split(base.x, torch.tensor([1, 1]), base.ids)
    name = Split(base.x, base.y, ["a", "c"])
    digests = {data_digest(s) for s in (base, pixel, label, name)}
    assert len(digests) == 4
    assert data_digest(Split(base.x.clone(), base.y.clone(), ["a", "b"])) == data_digest(base)


def test_order_is_stable_when_examples_are_added() -> None:
    ids = [f"{i}" for i in range(40)]
    labels = [i % 4 for i in range(40)]
    before = [ids[i] for i in balanced_order(ids[:30], labels[:30]) if labels[i] == 1]
    after = [ids[i] for i in balanced_order(ids, labels) if labels[i] == 1 and i < 30]
    assert before == after


def test_validation_is_stable_when_examples_are_added() -> None:
    ids = [f"train/{i:04d}" for i in range(4000)]
    labels = [i % 2 for i in range(4000)]
    few, many = validation_ids(ids[:2000], labels[:2000]), validation_ids(ids, labels)
    assert few == many & set(ids[:2000])
    assert 300 < len(many) < 500
    assert validation_ids(["only"], [0]) == set()
    assert len(validation_ids(["one", "two"], [0, 0])) == 1
