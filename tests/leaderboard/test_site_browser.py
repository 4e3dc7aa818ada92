"""The pages in a real browser, opened from disk. Skipped where Playwright or Chromium is absent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic_site import defense, digits_suite, suite, write_gallery_file

from leaderboard import render

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    digits = digits_suite()
    write_gallery_file(root / "results", "digits", "ours")
    other = suite("digits-l2", [defense("madry", 1, 150, 80, [140, 85, 84, 86, 88, 99, 101, 120, 0])])
    return render([digits, other], root / "results", root / "site").parent


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} does not exist")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield running
        running.close()


class Visit:
    """A browser context that remembers everything a page should not do."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(180_000)  # ms; a machine that does other things starves a browser for long
        self.problems: list[str] = []
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("requestfailed", lambda request: self.problems.append(request.url))
        self.page.on("request", self._request)

    def _request(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            self.problems.append(request.url)

    def open(self, path: Path, fragment: str = "") -> Any:
        self.page.goto(path.as_uri() + fragment)
        return self.page


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    visits: list[Visit] = []

    def make(**options: Any) -> Visit:
        visits.append(Visit(browser, **options))
        return visits[-1]

    yield make
    for one in visits:
        one.context.close()
        assert one.problems == []


def names(page: Any, table: str = "leaderboard") -> list[str]:
    return page.locator(f"#{table} tbody tr:visible th a").all_inner_texts()


RANKED = ["madry", "ours", "feature-squeezing", "jpeg", "none", "none-again"]


def sort_button(page: Any, key: str, table: str = "leaderboard") -> Any:
    return page.locator(f"#{table} th[data-key='{key}'] button")


def test_every_kind_of_page_opens_from_disk_without_complaint(visit: Any, pages: Path) -> None:
    one = visit()
    for path in ("index.html", "digits-l2/index.html", "digits/defenses/ours.html", "digits/attacks/bpda.html"):
        page = one.open(pages / path)
        assert page.locator("h1").is_visible()
        broken = "[...document.images].filter((image) => !image.naturalWidth).length"
        assert page.evaluate(broken) == 0


def test_clicking_a_header_sorts_and_says_so(visit: Any, pages: Path) -> None:
    page = visit().open(pages / "index.html")
    assert names(page) == RANKED
    header = page.locator("#leaderboard th[data-key='standard_accuracy']")
    sort_button(page, "standard_accuracy").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert names(page) == ["none", "none-again", "jpeg", "feature-squeezing", "madry", "ours"]
    sort_button(page, "standard_accuracy").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert names(page) == ["ours", "madry", "feature-squeezing", "jpeg", "none", "none-again"]
    sort_button(page, "defense").click()
    assert header.get_attribute("aria-sort") is None
    assert names(page) == sorted(RANKED)


def test_missing_values_stay_last_in_both_directions(visit: Any, pages: Path) -> None:
    page = visit().open(pages / "index.html")
    sort_button(page, "inference_ratio").click()
    assert names(page) == ["madry", "jpeg", "feature-squeezing", "ours", "none", "none-again"]
    sort_button(page, "inference_ratio").click()
    assert names(page) == ["ours", "feature-squeezing", "jpeg", "madry", "none", "none-again"]


def test_every_column_of_every_table_sorts(visit: Any, pages: Path) -> None:
    one = visit()
    for path in ("index.html", "digits/defenses/feature-squeezing.html", "digits/attacks/pgd.html"):
        page = one.open(pages / path)
        buttons = page.locator("th[data-key] button")
        assert buttons.count() == page.locator("table[data-sortable] thead th[data-key]").count() > 0
        page.evaluate("document.querySelectorAll('th[data-key] button').forEach((button) => button.click())")
        assert page.locator("th[aria-sort]").count() == page.locator("table[data-sortable]").count()


def test_sorting_works_from_the_keyboard(visit: Any, pages: Path) -> None:
    page = visit().open(pages / "index.html")
    sort_button(page, "a.bpda", "matrix").focus()
    page.keyboard.press("Enter")
    assert names(page, "matrix")[0] == "none"
    page.keyboard.press("Space")
    assert names(page, "matrix")[0] == "madry"


def test_filters_apply_to_both_tables_and_count(visit: Any, pages: Path) -> None:
    page = visit().open(pages / "index.html")
    page.get_by_label("Family").select_option("transformation")
    assert names(page) == names(page, "matrix") == ["ours", "jpeg"]
    page.locator("select[name=flag]").select_option("randomized")
    assert names(page) == ["ours"]
    assert page.locator("#shown").inner_text() == "1 of 6 defenses"
    page.get_by_role("button", name="Reset").click()
    page.wait_for_function("document.getElementById('shown').textContent === '6 of 6 defenses'")
    page.locator("select[name=flag]").select_option("!")
    assert names(page) == ["madry", "feature-squeezing", "none", "none-again"]


def test_search_looks_at_names_tags_attacks_and_flags(visit: Any, pages: Path) -> None:
    page = visit().open(pages / "index.html")
    search = page.get_by_label("Search")
    for text, expected in {
        "SQUEEZ": ["feature-squeezing"],
        "test-time": ["ours"],
        "bpda-i-eot transformation": ["ours", "jpeg"],
        "zero gradient": ["ours", "jpeg"],
        "nothing of the kind": [],
    }.items():
        search.fill(text)
        assert names(page) == expected, text


def test_the_address_restores_the_view(visit: Any, pages: Path) -> None:
    one = visit()
    page = one.open(pages / "index.html")
    page.get_by_label("Search").fill("none")
    page.get_by_label("Family").select_option("undefended")
    sort_button(page, "defense").click()
    sort_button(page, "defense").click()
    sort_button(page, "a.pgd", "matrix").click()
    assert names(page) == ["none-again", "none"]
    fragment = page.evaluate("location.hash")
    again = visit().open(pages / "index.html", fragment)
    assert again.get_by_label("Search").input_value() == "none"
    assert again.get_by_label("Family").input_value() == "undefended"
    assert names(again) == ["none-again", "none"]
    assert again.locator("#matrix th[data-key='a.pgd']").get_attribute("aria-sort") == "ascending"


def test_an_address_that_makes_no_sense_shows_everything(visit: Any, pages: Path) -> None:
    page = visit().open(pages / "index.html", "#family=gone&sort=nowhere~x~y&sort=leaderboard&flag=<b>")
    assert names(page) == RANKED


def test_the_skip_link_keeps_the_filter(visit: Any, pages: Path) -> None:
    page = visit().open(pages / "index.html", "#q=jpeg")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main"
    assert names(page) == ["jpeg"]


def background(page: Any) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_the_theme_follows_the_system_until_it_is_chosen(visit: Any, pages: Path) -> None:
    light = background(visit(color_scheme="light").open(pages / "index.html"))
    one = visit(color_scheme="dark")
    page = one.open(pages / "index.html")
    dark = background(page)
    assert dark != light
    page.get_by_role("button", name="Light theme").click()
    assert background(page) == light
    page.reload()
    assert background(page) == light
    page.get_by_role("button", name="Dark theme").click()
    assert background(page) == dark


def test_closed_storage_is_no_error(visit: Any, pages: Path) -> None:
    one = visit()
    one.context.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new Error('closed'); } })"
    )
    page = one.open(pages / "index.html")
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_without_javascript_the_tables_are_complete(visit: Any, pages: Path) -> None:
    page = visit(java_script_enabled=False).open(pages / "index.html")
    assert names(page) == names(page, "matrix") == RANKED
    assert not page.locator("#controls").is_visible()
    assert not page.locator("#theme").is_visible()


@pytest.mark.parametrize("path", ["index.html", "digits/defenses/ours.html", "digits/attacks/bpda.html"])
@pytest.mark.parametrize("width", [320, 375])
def test_a_phone_never_scrolls_the_page_sideways(visit: Any, pages: Path, path: str, width: int) -> None:
    page = visit(viewport={"width": width, "height": 700}).open(pages / path)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def add(page: Any, html: str) -> None:
    """Put a piece of another kind of page at the end of this one."""
    page.evaluate("(html) => document.querySelector('main').insertAdjacentHTML('beforeend', html)", html)


def test_plots_side_by_side_fit_a_phone_and_keep_what_stands_beside_them(visit: Any, pages: Path) -> None:
    page = visit(viewport={"width": 320, "height": 700}).open(pages / "index.html")
    add(page, '<figure class="panels"><svg viewBox="0 0 100 50"></svg></figure>')
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.evaluate("getComputedStyle(document.querySelector('.panels > svg')).overflow") == "visible"


def test_a_name_breaks_between_its_parts_alone(visit: Any, pages: Path) -> None:
    page = visit(viewport={"width": 390, "height": 700}).open(pages / "index.html")
    whole = page.evaluate(
        """() => { const link = document.querySelector('#leaderboard tbody th a');
        link.innerHTML = 'reconstruction(<wbr>classifier=<wbr>madry)';
        return [...link.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => {
            const range = document.createRange(); range.selectNodeContents(node); return range.getClientRects().length;
        }); }"""
    )
    assert whole == [1, 1, 1]


def test_a_head_of_one_row_looks_like_one(visit: Any, pages: Path) -> None:
    page = visit().open(pages / "index.html")
    add(page, '<table class="matrix"><thead><tr><th scope="col" id="single">clean</th></tr></thead></table>')
    assert page.evaluate("getComputedStyle(document.getElementById('single')).fontWeight") == "600"
    assert page.evaluate("getComputedStyle(document.getElementById('single')).borderBottomWidth") == "1px"


def contrast(page: Any, selector: str) -> float:
    """WCAG contrast of the first match against the nearest opaque background behind it."""
    return float(
        page.evaluate(
            """(selector) => {
            const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
            const rgba = (color) => {
                canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
                return [...canvas.getImageData(0, 0, 1, 1).data];
            };
            const luminance = (color) => rgba(color).slice(0, 3).map((v) => v / 255)
                .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
                .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
            const element = document.querySelector(selector);
            let behind = element;
            while (rgba(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
            const pair = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(luminance);
            return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
            }""",
            selector,
        )
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(visit: Any, pages: Path, scheme: str) -> None:
    page = visit(color_scheme=scheme).open(pages / "index.html")
    for selector in (
        "body", ".facts dt", "#leaderboard .sub", "#leaderboard .interval", "#leaderboard a", "thead .group-start",
        ".chip.warning", ".chip.info", ".status.partial", ".status.failed", ".heat", "caption", "footer p", ".shown",
    ):  # fmt: skip
        assert contrast(page, selector) >= 4.5, selector
    strongest = page.evaluate(
        """() => { const cells = [...document.querySelectorAll('.heat')];
        const share = (cell) => Number(cell.style.getPropertyValue('--share'));
        cells.sort((a, b) => share(b) - share(a))[0].id = 'strongest'; return share(cells[0]); }"""
    )
    assert strongest > 0.8
    assert contrast(page, "#strongest") >= 4.5
    for small in ("sub", "status partial"):
        page.evaluate(
            """(small) => { const cell = document.getElementById('strongest');
            cell.innerHTML = `<span class="${small}" id="small">l2 0.9</span>`; }""",
            small,
        )
        assert contrast(page, "#small") >= 4.5, small
