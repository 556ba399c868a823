"""How much faster a sweep is with more processes, and whether it says the same.

    python benchmarks/sweep_scaling.py [--jobs 2] [--repeats 2] [OPTIONS OF gradcheck]

times `python cli.py gradcheck OPTIONS`, `--exhaustive` where none are given, with `--jobs 1` and `--jobs N`
in turn, and prints the ratio of their shortest times. Exit status 1: the verdicts or figures differ.

The times are those of the whole command, its start included; the kernels are compiled before. Nothing else
may run on the machine: it would take time from the one run or the other.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from gradcheck.sweep import read  # noqa: E402 -- that of this checkout
from tinygrad_bn.kernels.cpu.compiling import compile_elsewhere  # noqa: E402


def timed(words: list[str], jobs: int) -> tuple[float, list[dict[str, Any]], str]:
    """The seconds that a sweep takes; its results without their times, in an order of their own; what ran."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sweep.jsonl")
        command = [sys.executable, "cli.py", "gradcheck", *words, "--jobs", str(jobs), "--report", str(path)]
        began = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, check=False)
        seconds = time.perf_counter() - began
        if done.returncode not in (0, 1):
            sys.exit(done.returncode)
        recorded = read(path)
    results = sorted(recorded.results, key=lambda result: result.key)
    versions = ", ".join(f"{name} {version}" for name, version in recorded.header.versions.items())
    return seconds, [{**result.as_json(), "seconds": None} for result in results], versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    options, words = parser.parse_known_args()
    words = words or ["--exhaustive"]
    for family in ("rows", "split", "cols", "dropout"):
        compile_elsewhere(family)
    times: dict[int, list[float]] = {1: [], options.jobs: []}
    same: list[dict[str, Any]] | None = None
    for _ in range(options.repeats):
        for jobs, taken in times.items():
            seconds, results, versions = timed(words, jobs)
            taken.append(seconds)
            if same is not None and results != same:
                sys.exit(f"the verdicts or figures with --jobs {jobs} are not those of the first run")
            same = results
    one, many = min(times[1]), min(times[options.jobs])
    print(f"{len(same or ())} configurations, the same in every run; {versions}; {os.cpu_count()} cores")
    for jobs, taken in times.items():
        print(f"--jobs {jobs}: {', '.join(f'{seconds:.1f}' for seconds in taken)} s")
    print(f"{one / many:.2f} times as fast with {options.jobs}")


if __name__ == "__main__":
    main()
