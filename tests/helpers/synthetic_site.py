"""Synthetic summaries: every kind of cell, flag and defense that a page has to show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from bench.contracts.words import Tier
from bench.storing.names import slug
from bench.storing.records import (
    AttackRecord,
    ClaimRecord,
    DefenseRecord,
    GalleryEntry,
    Probe,
    Provenance,
    StudyRecord,
    SuiteRecord,
    Timing,
    VariantRecord,
)
from bench.storing.store import Store
from bench.summary.metrics import wilson
from bench.summary.numbers import (
    AttackSummary,
    DefenseSummary,
    DetectionSummary,
    Estimate,
    Flag,
    HalfRadius,
    SuiteSummary,
    TierSummary,
)
from bench.summary.ranking import Scores

N = 200
EPS = 8 / 255

ORIGIN = Provenance(
    command="bench evaluate --suite digits --all-defenses",
    started="2026-03-01T10:00:00Z",
    ended="2026-03-01T12:34:56Z",
    git_commit="0123456789abcdef0123456789abcdef01234567",
    git_dirty=True,
    versions={"python": "3.11.2", "torch": "2.6.0"},
    hardware={"cpu": "some processor", "cores": "2"},
)

FLAGS = {
    "randomized": Flag("randomized", "randomised", "Two passes of one input differ.", "info"),
    "zero-gradient": Flag("zero-gradient", "zero gradient", "The gradient is exactly zero on 37 % of inputs."),
    "incomplete": Flag("incomplete", "incomplete", "Not every attack has finished."),
}


def estimate(hits: int, n: int = N) -> Estimate:
    return Estimate(hits / n, *wilson(hits / n, n), n)


def attack_record(name: str, knowledge: str = "gradient", **params: object) -> AttackRecord:
    counted = not name.startswith("unbounded")
    return AttackRecord(
        name=name,
        function=str(params.pop("function", "pgd")),
        knowledge=knowledge,
        params=params,
        eps=EPS if counted else 1.0,
        version=1,
        counted=counted,
        summary=f"What {name} does.",
        paper="Madry et al. 2018, Towards Deep Learning Models Resistant to Adversarial Attacks",
        url="https://arxiv.org/abs/1706.06083",
    )


ATTACKS = [
    attack_record("noise", "transfer", function="noise", draws=10),
    attack_record("pgd", steps=100, step_size=0.25, restarts=5, loss="ce", estimator="exact"),
    attack_record("bpda", steps=100, restarts=5, loss="margin", estimator={"bpda": "tanh"}),
    attack_record("bpda-i-eot", steps=200, loss="margin", estimator={"eot": {"samples": 16, "of": "identity"}}),
    attack_record("finite-difference", steps=20, estimator={"finite_difference": {"samples": 64, "sigma": 0.03}}),
    attack_record("genattack", "score", function="genattack", population=4, generations=1000),
    attack_record("hopskipjump", "decision", function="hopskipjump", queries=5000),
    attack_record("transfer", "transfer", function="transfer", steps=100),
    attack_record("unbounded-pgd", steps=100, estimator="identity"),
]


def cell(record: AttackRecord, hits: int | None, **changes: object) -> AttackSummary:
    values: dict[str, object] = {
        "record": record,
        "status": "complete" if hits is not None else "missing",
        "robust": None if hits is None else estimate(hits),
        "mean_forward": 1234.5,
        "mean_backward": 0.0 if record.knowledge != "gradient" else 1200.0,
        "seconds_per_example": 0.0421,
        "prepare_seconds": 0.0,
        "worst_for": 0 if hits is None else (N - hits) // 8,
        "zero_gradient_share": 0.0,
        "violations": {},
        "errors": [],
        "notes": [],
        "detection_rate": None,
    }
    return AttackSummary(**(values | changes))  # type: ignore[arg-type]


def survivors(robust: Estimate, randomized: bool) -> list[float]:
    """Per-example survival that agrees with an accuracy: shares of draws, or the first examples survive."""
    if randomized:
        return [robust.value] * N
    return [float(i < round(N * robust.value)) for i in range(N)]


def defense(
    name: str,
    rank: int,
    standard: int,
    worst: int,
    left: list[int | None],
    *,
    attacks: list[AttackRecord] | None = None,
    changes: dict[str, dict[str, object]] | None = None,
    flags: tuple[str, ...] = (),
    detector: bool = False,
    randomized: bool = False,
    timing: Timing | None = None,
    trained: float | None = None,
    **card: object,
) -> DefenseSummary:
    attacks = attacks or ATTACKS
    changes = changes or {}
    cells = [cell(r, hits, **changes.get(r.name, {})) for r, hits in zip(attacks, left, strict=True)]
    gallery = [
        GalleryEntry(id=f"test/{i}", attack="bpda", label=i, clean_prediction=i, adversarial_prediction=(i + 3) % 10)
        for i in range(3)
    ]
    record = DefenseRecord(
        version=1,
        weights=f"weights of {rank}",
        name=name,
        reference=name,
        num_parameters=123456,
        checkpoint_sha256="ab" * 32,
        training={"epochs": 30, "seed": 1, "seconds": trained},
        probe=Probe(
            randomized=randomized,
            declared_randomized=randomized,
            outputs_are_probabilities=False,
            gradient="ok",
            zero_gradient_share=0.0,
            batch_dependent=False,
            approximations=["tanh"],
            transforms=True,
            has_detector=detector,
            threshold=0.731 if detector else None,
            validation_examples=297,
        ),
        timing=timing,
        gallery=gallery,
        provenance=ORIGIN,
        **card,  # type: ignore[arg-type]
    )
    measured = [c for c in cells if c.robust and c.record.counted]
    complete = all(c.status in ("complete", "not-applicable") for c in cells)
    return DefenseSummary(
        record=record,
        slug=slug(name),
        rank=rank if complete else None,
        complete=complete,
        standard=estimate(standard),
        worst_case=estimate(worst),
        worst_attack=min(measured, key=lambda c: c.robust.value).record.name,  # type: ignore[union-attr]
        attacks=cells,
        detection=DetectionSummary(
            threshold=0.731,
            target_false_positive_rate=0.05,
            false_positive_rate=estimate(9),
            clean_accepted=estimate(180),
            noise_rejected=estimate(31),
            tiers={"oblivious": tier("oblivious", 170, 0.9024), "adaptive": tier("adaptive", 113, 0.7601)},
            robust_with_rejection=estimate(worst),
            robust_without_rejection=estimate(worst // 2),
            stratified=estimate(worst - 1),
            near_rejected=estimate(12),
            clean_scores=[0.1, 0.2, 0.3, 0.8],
            noise_scores=[0.2, 0.4, 0.9],
            best_at_half=HalfRadius("madry", 0.7123, measured=False),
        )
        if detector
        else None,
        flags=[FLAGS[flag] for flag in flags],
        commits=[f"{ORIGIN.git_commit}+"],
        worker_seconds=754.0,
        curve=[],
        judging_error=None,
        survival={c.record.name: survivors(c.robust, randomized) for c in measured if c.robust},
        levels={"none": len(measured)},
    )


def tier(name: Tier, caught: int, accuracy: float) -> TierSummary:
    """The numbers of a tier that caught so many, and scores of four images of which two have a success."""
    scores = Scores(np.array([0.1, 0.2, 0.3, 0.8]), np.array([0.25, 0.9]), np.array([0, 2]), np.ones(2))
    return TierSummary(
        tier=name,
        attacks=["pgd"],
        true_positive_rate=estimate(caught),
        accuracy=accuracy,
        caught_at_5=estimate(caught - 3),
        caught_at_1=estimate(caught - 20),
        auroc=Estimate(0.8125, 0.75, 0.875, 200),
        robust=estimate(caught - 5),
        stratified=estimate(caught - 7),
        scores=scores,
    )


def timing(ratio: float) -> Timing:
    return Timing(
        seconds_per_1000=0.12 * ratio,
        reference_seconds_per_1000=0.12,
        batch_size=256,
        repeats=5,
        device="cpu",
    )


def suite(name: str, defenses: list[DefenseSummary], attacks: list[AttackRecord] | None = None) -> SuiteSummary:
    record = SuiteRecord(
        data_version=1,
        name=name,
        description="Handwritten digits at 8 by 8 pixels.",
        data="digits",
        split="test",
        shape=(1, 8, 8),
        class_names=["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
        ids=[f"test/{i}" for i in range(N)],
        digests=[f"digest of test/{i}" for i in range(N)],
        norm="linf",
        eps=EPS,
        seed=7,
        shard_size=50,
        draws_select=20,
        draws_report=100,
        false_positive_rate=0.05,
        reference="none",
        attacks=attacks or ATTACKS,
    )
    return SuiteSummary(record, defenses, [])


def digits_suite() -> SuiteSummary:
    """Every kind of result: ties, a detector, a randomised defense, failed, partial and missing cells."""
    return suite(
        "digits",
        [
            defense(
                "madry", 1, 171, 92, [168, 95, 94, 97, 99, 110, 121, 150, 0], timing=timing(1.0), trained=512.0,
                title="Adversarial training", family="adversarial training", tags=["deterministic"],
                summary="Trains on the examples that PGD finds.",
                paper="Madry et al. 2018", url="https://arxiv.org/abs/1706.06083",
                claims=[ClaimRecord(data="CIFAR-10", threat="linf 8/255", standard=87.3, robust=45.8,
                                    attack="PGD-20", source="Table 2")],
            ),
            defense(
                "ours", 2, 166, 74, [160, 133, 81, 76, 85, 105, 118, 122, 1], timing=timing(14.25), trained=871.0,
                flags=("randomized", "zero-gradient"), randomized=True, title="Adversarial transformation",
                family="transformation", tags=["randomised", "test-time optimisation"],
            ),
            defense(
                "feature-squeezing", 3, 173, 23, [150, 88, 31, 33, 40, 62, 70, 91, 0], timing=timing(4.02),
                detector=True, family="detector", changes={"bpda": {"detection_rate": 0.418}},
            ),
            defense(
                "jpeg", 4, 175, 11, [155, 140, 13, 12, 38, 60, None, None, 0], timing=timing(3.2), trained=60.5,
                flags=("incomplete", "zero-gradient"), family="transformation",
                changes={
                    "transfer": {"status": "failed", "errors": ["RuntimeError: out of luck"]},
                    "genattack": {"status": "partial", "robust": estimate(45, 150)},
                    "pgd": {"zero_gradient_share": 0.37, "violations": {"outside the ball": 6},
                            "notes": ["the graph is cut"]},
                },
            ),
            defense("none", 5, 176, 0, [149, 0, 0, 0, 2, 9, 11, 14, None], family="undefended",
                    changes={"unbounded-pgd": {"status": "not-applicable"}}),
            defense("none-again", 5, 176, 0, [149, 0, 0, 0, 2, 9, 11, 14, 0], family="undefended"),
        ],
    )  # fmt: skip


def study_suite(distance: float | None = 0.148) -> SuiteSummary:
    """Four variants of ``ours``, of which one has not been evaluated, and one transforms images of one size."""
    attacks = [ATTACKS[3]]
    numbers = (("ours(radius=0.1)", 3, 160, 20), ("ours", 1, 150, 60), ("ours(radius=0.6)", 2, 120, 50))
    one, two, three = (defense(*each, [each[-1]], attacks=attacks) for each in numbers)
    probe = two.record.probe.model_copy(update={"transform_distance": distance})
    two = replace(two, record=two.record.model_copy(update={"probe": probe}))
    labels = {"0.1": one, "0.4": two, "0.6": three}
    variants = [
        VariantRecord(label=label, defense=item.record.name, published={"bpda-i-eot": 10.0 * number})
        for number, (label, item) in enumerate(labels.items())
    ]
    variants.append(VariantRecord(label="0.9", defense="ours(radius=0.9)"))
    made = suite("ours-radius", [two, three, one], attacks)
    study = StudyRecord(
        defense="ours", title="Robustness by radius", axis="radius", source="figure 6", variants=variants
    )
    return replace(made, record=made.record.model_copy(update={"study": study}))


def write_gallery_file(results: Path, suite_name: str, name: str) -> None:
    """Gallery arrays whose transform has another size and leaves [0, 1]."""
    rng = np.random.default_rng(0)
    x = rng.random((3, 1, 8, 8), dtype=np.float32)
    sign = rng.choice([-1.0, 1.0], x.shape).astype(np.float32)
    folder = Store(results, suite_name).defense_folder(name)
    folder.mkdir(parents=True)
    arrays = {
        "x": x,
        "x_adv": np.clip(x + np.float32(EPS) * sign, 0, 1),
        "g_x": rng.normal(0.5, 1, (3, 3, 10, 12)).astype(np.float32),
        "g_x_adv": rng.normal(0.5, 1, (3, 3, 10, 12)).astype(np.float32),
    }
    save_file(arrays, folder / "gallery.safetensors")
