"""Order, validation and digest."""

from __future__ import annotations

import torch

from bench.data.splits import Split, balanced_order, data_digest, example_digests, validation_ids


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


def test_uint8_inputs_are_read_as_the_same_floats() -> None:
    held = torch.arange(256, dtype=torch.uint8).view(64, 1, 2, 2)
    y, ids = torch.arange(64) % 2, [str(i) for i in range(64)]
    small, large = Split(held, y, ids), Split(held.float() / 255, y, ids)
    assert small.x.dtype == torch.float32 and torch.equal(small.x, large.x)
    for rows in (slice(3, 9), [5, 1, 5], torch.tensor([63, 0]), y == 1):
        assert torch.equal(small.at(rows), large.x[rows])
        assert torch.equal(large.at(rows), large.x[rows])
    assert torch.equal(small.take(5).x, large.x[:5])
    assert small.digest == large.digest
    assert small.take(5).digest == large.take(5).digest != small.digest
    assert example_digests(small) == example_digests(large)


def test_batches_cover_the_split_in_order() -> None:
    split = Split(torch.arange(28, dtype=torch.uint8).view(7, 1, 2, 2), torch.arange(7), list("abcdefg"))
    xs, ys = zip(*split.batches(3), strict=True)
    assert [len(x) for x in xs] == [3, 3, 1]
    assert torch.equal(torch.cat(xs), split.x)
    assert torch.equal(torch.cat(ys), split.y)
