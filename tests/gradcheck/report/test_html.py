"""What the page is made of: pictures and places, without a browser."""

from __future__ import annotations

import base64
import itertools
import re
import struct
import zlib
from importlib import resources
from types import SimpleNamespace

import numpy as np
import pytest

import gradcheck
from gradcheck.diagnosis.findings import Elements, Finding
from gradcheck.judge import Curve
from gradcheck.report import html
from gradcheck.report.html import png
from gradcheck.report.html.maps import maps, worst_elements
from gradcheck.report.html.plot import plot
from gradcheck.report.layout import arranged, described
from gradcheck.report.picture import picture


def elements(shape, analytic, numeric, bar=1e-12):
    size = int(np.prod(shape))
    numbers = (tuple(np.broadcast_to(np.ravel(part), size).tolist()) for part in (analytic, numeric, bar))
    return Elements(tuple(tuple(range(n)) for n in shape), *numbers)


def finding(shape, analytic, numeric, **changes):
    found = elements(shape, analytic, numeric)
    return Finding("x", shape, (0,) * len(shape), 1.0, 0.0, 1e-12, 1, 1, elements=found, **changes)


def decoded(data):
    """Width, height and pixels of a PNG of the kind that is written here; the checksums hold."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, chunks = 8, {}
    while at < len(data):
        (length,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + body),)
        chunks[kind] = body
        at += 12 + length
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return rows[:, 1:]


def test_a_picture_is_a_png_file():
    pixels = np.arange(12).reshape(3, 4)
    assert np.array_equal(decoded(png.encoded(pixels, np.zeros((12, 3)), 11)), pixels)


@pytest.mark.parametrize(
    "shape", [(), (7,), (200,), (3, 5), (2, 3, 4), (2, 2, 3, 4), (2, 1, 2, 3, 2)], ids=str
)
def test_every_element_has_one_place_in_the_picture(shape):
    size = int(np.prod(shape))
    where = arranged(elements(shape, 0.0, 0.0))
    assert sorted(where[where >= 0].tolist()) == list(range(size))
    assert where.shape[1] <= 64 or len(shape) > 1
    if len(shape) >= 2:  # neighbours along the last axis are neighbours in the picture
        place = {int(k): divmod(n, where.shape[1]) for n, k in enumerate(where.ravel()) if k >= 0}
        numbers = np.arange(size).reshape(shape)
        for left, right in itertools.pairwise(numbers[(0,) * (len(shape) - 1)].tolist()):
            assert place[right] == (place[left][0], place[left][1] + 1)
    assert described(elements(shape, 0.0, 0.0), shape)


def test_the_maps_show_the_wrong_element_and_tell_it_from_what_is_not_finite():
    analytic = np.ones((2, 3))
    analytic[1, 2], analytic[0, 0], analytic[0, 1] = 2.0, np.nan, np.inf
    found = maps(finding((2, 3), analytic, np.ones((2, 3))))
    assert [each.title for each in found] == ["analytic", "numeric", "log error"]
    assert [(each.width, each.height) for each in found] == [(3, 2)] * 3
    assert found[0].low == "-2" and found[0].high == "2" and found[2].high == "1e+00"
    pixels = [decoded(base64.b64decode(each.image.partition(",")[2])) for each in found]
    unknown, infinite, largest = 251, 252, 249
    assert pixels[0].tolist() == [[unknown, infinite, 187], [187, 187, largest]]
    assert pixels[2].tolist() == [[unknown, infinite, 0], [0, 0, largest]]
    assert "grey: no value" in found[0].text and "black: infinite" in found[0].text
    assert "grey" not in found[1].text
    assert worst_elements(finding((2, 3), analytic, np.ones((2, 3))))[2].index == "1, 2"


CURVE = Curve((0.5, 0.1, 1e-3, 1e-9), (1.2, 1.01, 1.0, 1 + 1e-7), 1.5, 1.0, 1e-12, 1e-3, 1e-16)


def test_the_plot_has_its_points_in_the_frame_and_in_their_order():
    drawn = plot(CURVE)
    assert len(drawn.numeric) == 3 and len(drawn.analytic) == 4  # one difference is exact: no logarithm
    for x, y in (*drawn.numeric, *drawn.analytic, *drawn.rounding, drawn.chosen):
        assert drawn.left <= x <= drawn.right and drawn.top <= y <= drawn.bottom
    assert [x for x, _ in drawn.analytic] == sorted((x for x, _ in drawn.analytic), reverse=True)
    heights = {round(y) for _, y in drawn.analytic[2:]}
    assert len(heights) == 1  # it levels off
    assert "known to ± 1.0e-12; the analytic one is 5.0e-01 away" in drawn.text


@pytest.mark.parametrize("bar", [np.inf, np.nan])
def test_a_curve_that_never_settled_has_no_chosen_point(bar):
    nothing = Curve((0.5, 0.1), (np.nan, np.inf), 1.0, np.nan, bar, 0.1, 0.0)
    assert plot(nothing).chosen is None and "do not settle" in plot(nothing).text


def test_the_picture_in_a_terminal_is_dark_where_the_error_is(monkeypatch):
    analytic = np.zeros((2, 4))
    analytic[1, 3], analytic[0, 0] = 1.0, 1e-3
    found = finding((2, 4), analytic, np.zeros((2, 4)))
    assert picture(found) == ["░···", "···█   down: axis 0; right: axis 1"]
    monkeypatch.setattr("sys.stdout", SimpleNamespace(encoding="ascii"))
    assert picture(found) == ["-...", "...#   down: axis 0; right: axis 1"]


def test_the_picture_stays_small_and_says_nothing_where_all_is_alike():
    rng = np.random.default_rng(0)
    lines = picture(finding((25, 40), rng.normal(size=(25, 40)), np.zeros((25, 40))))
    assert len(lines) <= 8 and max(map(len, lines)) < 84
    assert picture(finding((3, 3), np.ones((3, 3)), np.zeros((3, 3)))) == []
    assert picture(finding((), 1.0, 0.0)) == []


def report(wrong):
    return gradcheck.check_pair(
        lambda x: (x**3, x),
        lambda x, c: ((3 + wrong) * x**2 * c,),
        (np.linspace(1, 2, 6).reshape(2, 3),),
        name="<b>",
    )


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_notebook_shows_the_same_entry(wrong):
    pytest.importorskip("jinja2")
    shown = report(wrong)._repr_html_()
    assert ("✗" in shown) == bool(wrong) and "&lt;b&gt;" in shown and "<b>   " not in shown
    assert shown.count("data:image/png") == 3 * wrong and ("<svg viewBox" in shown) == bool(wrong)
    assert not re.search(r"(src|href)=.?https?:", shown)


def test_a_notebook_without_jinja2_shows_the_text(monkeypatch):
    monkeypatch.setattr(html, "available", lambda: False)
    assert report(0)._repr_html_().startswith("<pre>PASS  &lt;b&gt;")


def luminance(colour):
    channels = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_text_has_contrast_enough_in_light_and_dark():
    """WCAG AA: 4.5 for text."""
    style = resources.files("gradcheck.report.html").joinpath("templates", "check.css").read_text("utf-8")
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in style.split("@media", 1))
    assert light.keys() == dark.keys()
    verdicts = ("pass", "vacuous", "inconclusive", "fail", "error")
    pairs = [("paper", ink) for ink in ("ink", "quiet", "link", "analytic", "numeric", "chosen")]
    pairs += [("raised", "ink"), *((verdict, f"on-{verdict}") for verdict in verdicts)]
    for colours in (light, dark):
        for ground, ink in pairs:
            low, high = sorted((luminance(colours[ground]), luminance(colours[ink])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ground, ink)
