"""The static site: one page per suite, defense and attack, rendered from summaries.

Every page is complete without JavaScript, every link is relative, and nothing is loaded from another host, so the
folder can be opened from disk, archived, or served from anywhere.
"""

from __future__ import annotations

import posixpath
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from bench.contracts.errors import InputError, one_line
from bench.contracts.isolation import MEANING
from bench.contracts.words import format_eps
from bench.storing.records import AttackRecord
from bench.storing.store import Store
from bench.storing.submitted import acceptance
from bench.storing.verified import verification
from bench.studies.input_gradients import record as input_gradients
from bench.studies.losses import record as losses_record
from bench.studies.transformation import claims as transformation
from bench.summary.columns import MISSING, TIER_COLUMNS, cell_columns_in
from bench.summary.numbers import DefenseSummary, SuiteSummary
from bench.summary.summarise import summarise_all
from leaderboard import detection, figures, formatting, losses, tables, verdict, views, waveforms
from leaderboard.gallery import CAPTIONS, GRADIENT_CAPTIONS, write_gallery, write_gradients

#: A folder with this file was built here and may be replaced.
MARKER = ".worst-case-bench-site"

#: The suites shown first where there are several, the first that has results before all others.
PREFERRED_SUITES = ("cifar10", "digits")


def build(results: Path, out: Path) -> Path:
    """Build the site of everything stored below ``results`` in the folder ``out``; returns its ``index.html``.

    Raises:
        InputError: when there are no results, or ``out`` is not a place to write a site to (see :func:`render`).
    """
    summaries, unreadable = summarise_all(results)
    return render(summaries, results, out, unreadable)


def render(summaries: list[SuiteSummary], results: Path, out: Path, unreadable: Sequence[str] = ()) -> Path:
    """Render summaries as a site in the folder ``out``; returns its ``index.html``.

    The site is written beside ``out`` and renamed, so an interrupted build leaves what was there before. A site
    built earlier is replaced as a whole.

    Args:
        summaries: one per suite; suites without any defense are left out.
        results: the results folder, read for the gallery images alone.
        out: the folder of the site.
        unreadable: a line for each suite whose record could not be read.

    Raises:
        InputError: when no suite has a defense; when ``out`` holds something other than a site, or cannot be
            written.
    """
    shown = [suite for suite in summaries if suite.defenses]
    if not shown:
        raise InputError(f"{results}: holds no results of any defense (run `bench evaluate` first)")
    shown.sort(key=lambda suite: (*(suite.record.name != name for name in PREFERRED_SUITES), suite.record.name))
    with _replacing(out) as folder:
        _write_assets(folder)
        environment = _environment()
        taken: set[str] = {"assets", "index.html"}
        pages = [
            _SuitePages.of(suite, formatting.file_name(suite.record.name, taken), i == 0)
            for i, suite in enumerate(shown)
        ]
        # A suite of which nothing can be shown has no page to say why.
        elsewhere = [text for suite in summaries if not suite.defenses for text in suite.unreadable]
        environment.globals.update(unreadable=[*unreadable, *elsewhere])
        for one in pages:
            _write_suite(environment, one, pages, results, folder)
    return out / "index.html"


@dataclass(frozen=True)
class _SuitePages:
    """A suite and the paths of its pages, relative to the root of the site."""

    suite: SuiteSummary
    index: str
    base: str  # everything but the default suite's index lies below
    groups: list[tuple[views.Group, list[AttackRecord]]]
    attack_keys: dict[str, str]
    defense_keys: dict[str, str]

    @classmethod
    def of(cls, suite: SuiteSummary, base: str, default: bool) -> _SuitePages:
        groups = views.attacks_of(suite)
        taken: set[str] = set()
        attack_keys = {a.name: formatting.file_name(a.name, taken) for _, attacks in groups for a in attacks}
        taken = set()
        defense_keys = {d.slug: formatting.file_name(d.slug, taken) for d in suite.defenses}
        index = "index.html" if default else f"{base}/index.html"
        return cls(suite, index, base, groups, attack_keys, defense_keys)

    @property
    def attacks(self) -> list[AttackRecord]:
        return [attack for _, attacks in self.groups for attack in attacks]

    def defense(self, defense: DefenseSummary) -> str:
        return f"{self.base}/defenses/{self.defense_keys[defense.slug]}.html"

    def losses(self, defense: DefenseSummary) -> str:
        return f"{self.base}/losses/{self.defense_keys[defense.slug]}.html"

    @property
    def verdict(self) -> str:
        return f"{self.base}/verdict.html"

    def attack(self, name: str) -> str:
        return f"{self.base}/attacks/{self.attack_keys[name]}.html"


def _gradients(store: Store, defense: DefenseSummary) -> input_gradients.InputGradients | None:
    """The stored measurement of the defense as it is now; what cannot be read is left out."""
    try:
        record = input_gradients.read(store, defense.record.name)
    except InputError:
        return None
    return record if record is not None and record.defense == defense.record.key else None


def _losses(store: Store, defense: DefenseSummary) -> losses_record.Losses | None:
    """The stored study of losses on the defense as it is now; what cannot be read is left out."""
    try:
        record = losses_record.read(store, defense.record.name)
    except InputError:
        return None
    return record if record is not None and record.defense == defense.record.key else None


def _studies(pages: _SuitePages, defense: DefenseSummary) -> bool:
    study = pages.suite.record.study
    return study is not None and study.defense == defense.record.name


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("leaderboard"),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for write in (
        formatting.percent,
        formatting.claimed,
        formatting.interval,
        formatting.with_interval,
        formatting.points,
        formatting.ratio,
        formatting.count,
        formatting.duration,
        formatting.compact,
        formatting.parameters,
        formatting.breakable,
        formatting.day,
        formatting.web_address,
        formatting.symbol,
        format_eps,
    ):
        environment.filters[write.__name__] = write
    captions = CAPTIONS | GRADIENT_CAPTIONS
    environment.globals.update(captions=captions, plot=waveforms, plots=detection, figures=figures, views=views)
    environment.globals.update(missing=MISSING)
    environment.globals["ISOLATION"] = MEANING
    environment.globals.update(cell_columns_in=cell_columns_in, TIER_COLUMNS=TIER_COLUMNS)
    return environment


def _shown(value: Any) -> Any:
    """What an expression of a template writes, before it is escaped: HTML has no place for control characters."""
    return one_line(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _write_suite(
    environment: jinja2.Environment, pages: _SuitePages, switcher: list[_SuitePages], results: Path, root: Path
) -> None:
    suite = pages.suite
    kind = suite.record.kind
    radius = partial(formatting.radius, kind=kind)

    def page(template: str, path: str, **context: Any) -> None:
        href = partial(posixpath.relpath, start=posixpath.dirname(path) or ".")
        text = environment.get_template(template).render(
            suite=suite,
            pages=pages,
            switcher=switcher,
            path=path,
            href=href,
            radius=radius,
            parts=formatting.PARTS[kind],
            **context,
        )
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    tables.write_table(root / pages.base / "leaderboard", tables.leaderboard_rows(suite))
    every_cell = [(d, cell) for d in suite.defenses for cell in d.attacks]
    tables.write_table(root / pages.base / "cells", [tables.cell_row(suite, *pair) for pair in every_cell])
    page("index.html", pages.index)
    for defense in suite.defenses:
        key = pages.defense_keys[defense.slug]
        own = [tables.cell_row(suite, defense, cell) for cell in defense.attacks]
        tables.write_table(root / pages.base / "defenses" / key, own)
        if defense.detection:
            tables.write_table(root / pages.base / "detection" / key, tables.tier_rows(suite, defense))
        if defense.curve:
            tables.write_table(root / pages.base / "curves" / key, tables.curve_rows(suite, defense))
        if defense.history:
            tables.write_table(root / pages.base / "history" / key, tables.history_rows(suite, defense))
        store, images = Store(results, suite.record.name), f"{pages.base}/images/{key}"
        stored = store.gallery_path(defense.record.name)
        gallery = write_gallery(stored, defense.record.gallery, root, images, suite.record.low, suite.record.high)
        gradients = _gradients(store, defense)
        maps = [] if gradients is None else write_gradients(gradients, root, images)
        studies = [other for other in switcher if _studies(other, defense)]
        path = pages.defense(defense)
        study = _losses(store, defense)
        shown: dict[str, Any] = {"studies": studies, "gradients": gradients, "maps": maps, "losses": study}
        shown["acceptance"] = acceptance(store, defense.record.name)
        shown["verified"] = verification(store, defense.record.key)
        shown["verdict"] = transformation.is_about(suite.record.name, defense.record.name)
        page("defense.html", path, defense=defense, gallery=gallery, **shown)
        if shown["verdict"]:
            found = transformation.verdict(results)
            context = {"claims": transformation, "plot_svg": Markup(found.plot), "captions_of": verdict.CAPTIONS}
            pairs = verdict.write_pictures(found.record, root, images)
            page("verdict.html", pages.verdict, defense=defense, found=found, pairs=pairs, **context)
        if study is not None:
            circles = losses.write_maps(study, root, images)
            page("losses.html", pages.losses(defense), defense=defense, record=study, maps=circles, losses=losses)
    for attack in pages.attacks:
        own = [tables.cell_row(suite, d, cell) for d, cell in every_cell if cell.record.name == attack.name]
        tables.write_table(root / pages.base / "attacks" / pages.attack_keys[attack.name], own)
        page("attack.html", pages.attack(attack.name), attack=attack)


def _write_assets(folder: Path) -> None:
    (folder / "assets").mkdir()
    for asset in files("leaderboard").joinpath("assets").iterdir():
        (folder / "assets" / asset.name).write_bytes(asset.read_bytes())


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A new folder that takes the place of ``out`` when the block ends well and vanishes when it does not."""
    out = out.resolve()
    if out.exists() and not out.is_dir():
        raise InputError(f"out {out}: is not a folder")
    try:
        if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
            raise InputError(f"out {out}: is not empty and not a site built before; choose another folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", suffix=".part", dir=out.parent))
    except OSError as error:
        raise InputError(f"out {out}: cannot be written ({error.strerror})") from None
    try:
        staging.chmod(0o755)  # mkdtemp makes it private, and a web server has to read it
        (staging / MARKER).write_text("Built from results files; the next build replaces this whole folder.\n")
        yield staging
        _swap(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _swap(new: Path, out: Path) -> None:
    """Rename ``new`` to ``out``; what ``out`` was is deleted only once the new folder is in its place."""
    if not out.exists():
        new.rename(out)
        return
    old = new.with_suffix(".old")
    try:
        out.rename(old)
    except OSError as error:
        raise InputError(f"out {out}: cannot be replaced ({error.strerror})") from None
    try:
        new.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)
