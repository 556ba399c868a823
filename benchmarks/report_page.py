"""How large the HTML page of the exhaustive sweep is, and how fast Chromium opens it.

python benchmarks/report_page.py [SWEEP.jsonl]

Without a file, the figures of every configuration are those of one: size and time hardly hang on them.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from gradcheck import axes, configurations
from gradcheck.adapters.tinygrad_bn import check_configuration
from gradcheck.report.groups import Outcome
from gradcheck.report.html import page
from gradcheck.sweep import Result, read

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
ROUNDS = 5


def results() -> list[Result]:
    """Those of a file, or of every configuration with the figures of the first."""
    if len(sys.argv) > 1:
        return list(read(sys.argv[1]).results)
    everything = [c for operation in axes.OPERATIONS for c in configurations.exhaustive(operation)]
    one = check_configuration(everything[0])
    return [dataclasses.replace(one, configuration=configuration) for configuration in everything]


def main() -> None:
    found = results()
    began = time.perf_counter()
    text = page(Outcome(found, 0, sum(result.seconds for result in found), len(found)))
    made = time.perf_counter() - began
    print(f"{len(found)} configurations: {len(text.encode()) / 1e6:.2f} MB, written in {made:.2f} s")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder, "page.html")
        path.write_text(text, encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        for width in (1400, 390):
            times = []
            for _ in range(ROUNDS):
                opened = browser.new_page(viewport={"width": width, "height": 900})
                began = time.perf_counter()
                opened.goto(path.as_uri())
                opened.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
                times.append(time.perf_counter() - began)
                opened.close()
            print(f"{width} px: open and painted in {sorted(times)[ROUNDS // 2]:.2f} s, median of {ROUNDS}")
        print(f"Chromium {browser.version}")
        browser.close()


if __name__ == "__main__":
    main()
