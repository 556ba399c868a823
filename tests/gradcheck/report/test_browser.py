"""The page in a real browser: headless Chromium, driven by playwright, without network."""

from __future__ import annotations

import shutil

import pytest

from gradcheck.report import examples, formats

ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
WIDE, NARROW = {"width": 1400, "height": 900}, {"width": 390, "height": 800}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("jinja2")
    folder = tmp_path_factory.mktemp("reports")
    for name, outcome in examples.outcomes().items():
        (folder / f"{name}.html").write_text(formats.render(outcome, "html"), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, folder):
    """Open a page; whatever it asks of the network, and whatever goes wrong in it, fails the test."""
    contexts, wrong = [], []

    def open_page(name, viewport=WIDE, **options):
        context = browser.new_context(viewport=viewport, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on(
            "request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None
        )
        page.goto((folder / f"{name}.html").as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def shown_at_the_foot(page):
    """The text of the cell in hand, which must lie within the window."""
    box, text = page.evaluate(
        """() => { const all = [...document.querySelectorAll('.matrix .c span')]
        .filter((span) => getComputedStyle(span).position === 'fixed');
        const box = all[0].getBoundingClientRect();
        return [[box.left, box.top, box.right, box.bottom, innerWidth, innerHeight], all[0].textContent]; }"""
    )
    left, top, right, bottom, width, height = box
    assert left >= 0 and top > 0 and right <= width and bottom <= height + 0.5
    return text


def test_a_cell_tells_its_figures_on_hover_and_on_focus(opened):
    page = opened("passing")
    cell = page.locator(".matrix li").nth(1)
    cell.hover()
    text = shown_at_the_foot(page)
    assert text.startswith("PASS moment_norm at ") and " · error " in text and " · resolution " in text
    page.mouse.move(0, 0)
    page.locator(".matrix li").first.focus()
    assert shown_at_the_foot(page).startswith("PASS moment_norm at ")
    page.keyboard.press("ArrowRight")
    assert shown_at_the_foot(page) == text


def test_a_cell_tells_its_figures_on_tap(opened):
    page = opened("passing", NARROW, has_touch=True, is_mobile=True)
    page.locator(".matrix li").nth(2).tap()
    assert " · resolution " in shown_at_the_foot(page)


@pytest.mark.parametrize("name", ["passing", "failing", "interrupted"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
def test_no_page_is_wider_than_its_window(opened, name, scheme, viewport):
    page = opened(name, viewport, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    assert dark == (scheme == "dark")


def test_every_failure_is_there_with_its_pictures(opened):
    page = opened("failing")
    assert page.locator("article.check").count() == examples.SHOWN
    first = page.locator("article.check", has_text="the mean path is missing").first
    assert first.locator(".map img").count() == 3
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert first.locator("figure.curve svg path.chosen").count() == 2  # in the picture, and in its key
    assert first.locator("code", has_text="python cli.py mutants --kind formula").count() == 1
    page.locator(".matrix li.fail a").first.click()
    target = page.url.partition("#")[2]
    assert page.locator(f"#{target}").get_attribute("data-verdict") == "FAIL"


def test_it_reads_without_scripts(opened):
    page = opened("failing", java_script_enabled=False)
    assert page.locator("article.check").first.is_visible()
    assert not page.locator("#filter").is_visible() and not page.locator("button.copy").first.is_visible()
    page.locator(".matrix li.pass").nth(1).focus()
    assert shown_at_the_foot(page).startswith("PASS ")
    page.get_by_label("Write every configuration out").check()
    assert page.locator(".matrix li span").first.bounding_box()["height"] > 10


def test_filter_and_copy(opened):
    page = opened("failing", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_label("PASS", exact=True).uncheck()
    assert page.locator(".matrix li:visible").count() == examples.SHOWN
    page.get_by_label("with the words").fill("dropout")
    assert page.locator(".matrix li:visible").count() == 1 == page.locator("article.check:visible").count()
    page.locator("button.copy:visible").click()
    page.get_by_text("Copied", exact=True).wait_for(timeout=5000)
    assert "--operation dropout" in page.evaluate("navigator.clipboard.readText()")


def test_the_keyboard_and_the_screen_reader_find_their_way(opened):
    page = opened("failing")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip the matrix"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "failures"
    snapshot = page.locator("body").aria_snapshot()
    for part in (
        'columnheader "resolution"',
        'rowheader "moment_norm"',
        'heading "Failures" [level=2]',
        'img "dx, ',
    ):
        assert part in snapshot
    assert page.locator("img:not([alt])").count() == 0
    assert (
        page.evaluate("document.querySelectorAll('[tabindex=\"0\"]').length") < 120
    )  # stops, not one per cell


def test_an_interrupted_sweep_says_so_first(opened):
    text = opened("interrupted").locator("header").inner_text()
    assert "Interrupted." in text and " of " in text


def test_print_has_neither_controls_nor_darkness(opened):
    page = opened("failing", color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#filter").is_visible() and not page.locator(".copy").first.is_visible()
    assert page.locator("pre").first.is_visible()
