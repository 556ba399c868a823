"""What was measured, as tables for people and as JSON for machines."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .figures import Measurement, Summary, number, summaries
from .libraries import FLOOR, OURS
from .speed import Failure

__all__ = ["SCHEMA_VERSION", "Report", "Table", "gpu", "machine", "speed_report"]

SCHEMA_VERSION = 2
PACKAGES = (
    "numpy", "numba", "llvmlite", "numba-cuda", "cupy-cuda12x", "cupy-cuda13x",
    "torch", "triton", "liger-kernel", "jax", "jaxlib",
)  # fmt: skip
CACHES = "/sys/devices/system/cpu/cpu0/cache"
SIZES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Table:
    """Cells as they are shown; the first column is text, the others are numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def as_text(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            first, *rest = [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)]
            return "  ".join([first.strip().ljust(widths[0]), *rest]).rstrip()

        return "\n".join([self.title, line(self.columns), *map(line, self.rows)])

    def as_markdown(self) -> str:
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = ("| " + " | ".join(cells) + " |" for cells in (self.columns, rule, *self.rows))
        return "\n".join([f"**{self.title}**", "", *lines])


@dataclass(frozen=True)
class Report:
    """kind: the command. settings: all that two reports must share to be compared. results: lists of plain
    records, by name.
    """

    kind: str
    seed: int
    settings: Mapping[str, Any]
    results: Mapping[str, Sequence[Mapping[str, Any]]]
    tables: Sequence[Table]
    notes: Sequence[str] = ()

    def as_text(self) -> str:
        return "\n\n".join([*(table.as_text() for table in self.tables), *self.notes, self._setting()])

    def as_markdown(self) -> str:
        notes = (note.replace("\n", "  \n") for note in self.notes)
        return "\n\n".join([*(table.as_markdown() for table in self.tables), *notes, self._setting()])

    def as_json(self) -> str:
        return json.dumps(self.as_record(), indent=1, allow_nan=False)

    def as_record(self) -> dict[str, Any]:
        header = {"schema_version": SCHEMA_VERSION, "kind": self.kind, "seed": self.seed}
        return {
            **header,
            "settings": dict(self.settings),
            "machine": machine(),
            "versions": versions(),
        } | dict(self.results)

    def _setting(self) -> str:
        """One line: on what, with what."""
        here, packages = machine(), ", ".join(f"{name} {version}" for name, version in versions().items())
        gpu = f"{self.settings['gpu']}; " if "gpu" in self.settings else ""
        cache = f"{here['cache_bytes'] / 2**20:.0f} MiB last-level cache, " if here["cache_bytes"] else ""
        return (
            f"{gpu}{here['processor']}, {here['cpus']} CPUs, {cache}{here['system']}; {packages}; "
            f"seed {self.seed}"
        )


def speed_report(
    measurements: Sequence[Measurement], failures: Sequence[Failure], seed: int, settings: Mapping[str, Any]
) -> Report:
    """Of `bench`: a table for each dtype, number of threads or GPU, and direction, and the summary of all."""
    cases = [each.as_json() for each in measurements]
    summary = summaries(measurements)
    failed = [
        {**asdict(each.case), "threads": each.threads, "library": each.library, "reason": each.reason}
        for each in failures
    ]
    results = {"cases": cases, "summary": [asdict(each) for each in summary], "failures": failed}
    groups: dict[tuple[str, str, str], list[Measurement]] = {}
    for each in measurements:
        key = (each.case.dtype, each.case.place(each.threads), each.direction)
        groups.setdefault(key, []).append(each)
    tables = [_times(group, *key) for key, group in groups.items()]
    tables += [_host(group, *key) for key, group in groups.items() if group[0].case.device != "cpu"]
    tables.append(_summary(summary))
    return Report("speed", seed, settings, results, tables, _bandwidth(measurements))


def _bandwidth(measurements: Sequence[Measurement]) -> list[str]:
    """What the share of the copy is a share of."""
    copies = [2 * each.case.nbytes / each.floor.best for each in measurements if each.case.device != "cpu"]
    if not copies:
        return []
    return [
        f"The copy moves {number(min(copies) / 1e9)} to {number(max(copies) / 1e9)} GB/s, read and written."
    ]


def _summary(found: Sequence[Summary]) -> Table:
    rows = []
    for each in found:
        ratios = (each.mean, each.worst)
        over = (each.mean_over_floor, each.worst_over_floor)
        what = f"{each.family}, {each.direction}, {each.dtype}"
        counts = (str(each.threads), str(each.count))
        rows.append((what, *counts, *map(number, ratios), each.worst_case, *map(number, over)))
    columns = ("", "threads", "cases", "peer ÷ ours", "worst", "worst case", "÷ floor", "worst")
    return Table("Summary: best peer ÷ ours, and ours ÷ floor; the means are geometric", columns, rows)


def _times(group: Sequence[Measurement], dtype: str, place: str, direction: str) -> Table:
    libraries = dict.fromkeys(name for each in group for name in (FLOOR, OURS, *each.timings))
    on_gpu = group[0].case.device != "cpu"
    rows = []
    for each in group:
        timings = [each.timings.get(library) for library in libraries]
        cells = ["" if t is None else f"{number(t.best * 1e3)}/{number(t.median * 1e3)}" for t in timings]
        last = each.of_copy if on_gpu else each.over_floor
        rows.append((str(each.case), *cells, number(each.ratio), number(last)))
    title = f"{direction}, {dtype}, {place}; best/median in ms"
    return Table(title, (direction, *libraries, "peer ÷ ours", "of the copy" if on_gpu else "÷ floor"), rows)


def _host(group: Sequence[Measurement], dtype: str, place: str, direction: str) -> Table:
    """What a call on a GPU costs the host, which does not wait for it."""
    libraries = dict.fromkeys(name for each in group for name in each.timings if name != FLOOR)
    rows = []
    for each in group:
        best = [min(each.timings[name].host) if name in each.timings else None for name in libraries]
        rows.append((str(each.case), *(number(None if t is None else t * 1e6) for t in best)))
    return Table(
        f"{direction}, {dtype}, {place}; the host's microseconds per call", (direction, *libraries), rows
    )


def machine() -> dict[str, Any]:
    """What the times depend on, as far as it can be found out."""
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "cache_bytes": cache_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def gpu(device: str) -> dict[str, Any]:
    """What the settings say of a GPU; nothing for the CPU."""
    if device == "cpu":
        return {}
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(int(device.partition(":")[2] or 0))
    return {"device": device, "gpu": properties["name"].decode()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def cache_bytes() -> int | None:
    """The size of the last-level cache; None where the system does not say."""
    found = []
    for index in Path(CACHES).glob("index*"):
        try:
            level, size = (index / "level").read_text(), (index / "size").read_text().strip()
        except OSError:
            continue
        found.append((int(level), int(size[:-1]) * SIZES[size[-1]] if size[-1] in SIZES else int(size)))
    return max(found)[1] if found else None


def versions() -> dict[str, str]:
    from .. import __version__

    found = {"tinygrad_bn": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
