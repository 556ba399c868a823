"""Libraries that functions may be written in, and that the kernels are measured beside."""

from __future__ import annotations

from importlib import metadata

from gradcheck.cli.doctor.probe import Finding, absent, ok

__all__ = ["jax", "torch"]


def torch() -> Finding:
    return _installed("torch")


def jax() -> Finding:
    return _installed("jax")


def _installed(package: str) -> Finding:
    try:
        return ok(metadata.version(package))
    except metadata.PackageNotFoundError:
        return absent("not installed; only to check its functions", f"pip install {package}")
