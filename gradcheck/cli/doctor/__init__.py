"""`python cli.py doctor`: what is here, what is missing, and the command that mends it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import click

from gradcheck.cli.doctor.probe import PROBES, Finding, examine

__all__ = ["doctor"]

SCHEMA_VERSION = 1
BROKEN = 1
DEVICES = ("cpu", "cuda", "cuda-sim")


@click.command()
@click.option(
    "--format",
    "output_format",
    type=click.Choice(("terminal", "json")),
    default="terminal",
    show_default=True,
)
@click.pass_context
def doctor(context: click.Context, output_format: str) -> None:
    """Look at Python, numba, the cache of kernels, CUDA and its simulator: one line for each.

    ok: it is there and right. absent: it is optional, and not there. wrong: it is broken; the line ends with
    the command that mends it, and the exit status is 1.
    """
    with ThreadPoolExecutor(4) as threads:
        findings = dict(zip(PROBES, threads.map(examine, PROBES), strict=True))
    missing = {device: _missing(device, findings) for device in DEVICES}
    click.echo(_as_json(findings, missing) if output_format == "json" else _as_text(findings))
    for device, names in missing.items():
        click.echo(f"{device}: " + (f"needs {', '.join(names)}" if names else "can be used"), err=True)
    context.exit(BROKEN if any(each.status == "wrong" for each in findings.values()) else 0)


def _missing(device: str, findings: Mapping[str, Finding]) -> list[str]:
    """What a device needs and has not."""
    return [name for name, each in findings.items() if device in PROBES[name].serves and each.status != "ok"]


def _as_text(findings: Mapping[str, Finding]) -> str:
    width = max(map(len, findings))
    lines = (
        f"{each.status:<6}  {name:<{width}}  {each.text}" + (f" → {each.mend}" if each.mend else "")
        for name, each in findings.items()
    )
    return "\n".join(lines)


def _as_json(findings: Mapping[str, Finding], missing: Mapping[str, Sequence[str]]) -> str:
    checks = [
        {"name": name, "status": each.status, "found": each.text, "mend": each.mend or None}
        for name, each in findings.items()
    ]
    record = {"schema_version": SCHEMA_VERSION, "checks": checks, "missing": missing}
    return json.dumps(record, indent=1, ensure_ascii=False)
