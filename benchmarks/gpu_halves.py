"""Whether the normalizations of 16-bit floats on a GPU are those of float64, rounded.

    python benchmarks/gpu_halves.py [DEVICE]

A row for each operation, dtype and shape: the largest error of the output and of each gradient, in units of
the last place of the largest result. Exit status 1: one is above 1. The gradient check leaves these dtypes
out, and numba's simulator has its own loads and stores. DEVICE is cuda unless another is named.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import tinygrad_bn as tg  # noqa: E402 -- that of this checkout
from tinygrad_bn import functional  # noqa: E402

OPERATIONS: dict[str, Any] = {
    "layer_norm": lambda x, w, b: functional.layer_norm(x, x.shape[-1], w, b),
    "rms_norm": lambda x, w, b: functional.rms_norm(x, x.shape[-1], w, 1e-6),
    "batch_norm": lambda x, w, b: functional.batch_norm(x, None, None, w, b, training=True),
    "batch_norm, channels last": lambda x, w, b: functional.batch_norm(
        x, None, None, w, b, training=True, channel_axis=-1
    ),
    "instance_norm": lambda x, w, b: functional.instance_norm(x, None, None, w, b),
    "group_norm": lambda x, w, b: functional.group_norm(x, 2, w, b),
}
SHAPES = ((8, 8, 8), (3, 6, 6), (5, 16, 16), (2, 64, 64))  # weight and bias fit along either axis


def errors(name: str, dtype: type, shape: tuple[int, ...], device: str) -> list[float]:
    """Of the output and the gradients of x, weight and bias where there are."""
    rng = np.random.default_rng(0)
    halves = [rng.normal(size=s).astype(dtype) for s in (shape, shape[-1:], shape[-1:], shape)]
    found = []
    for where in ("cpu", device):
        x, weight, bias, cotangent = (
            tg.tensor(a.astype(np.float64)) if where == "cpu" else tg.tensor(a, device=where) for a in halves
        )
        for leaf in (x, weight, bias):
            leaf.requires_grad = True
        y = OPERATIONS[name](x, weight, bias)
        y.backward(cotangent)
        results = [y, *(leaf.grad for leaf in (x, weight, bias))]
        found.append([None if r is None else r.numpy().astype(np.float64) for r in results])
    unit = float(ml_dtypes.finfo(dtype).eps)
    return [
        float(abs(got - wanted).max() / (unit * abs(wanted).max()))
        for wanted, got in zip(*found, strict=True)
        if wanted is not None
    ]


def main() -> int:
    device = sys.argv[1] if len(sys.argv) > 1 else "cuda"
    worst = 0.0
    for name in OPERATIONS:
        for dtype in (np.float16, ml_dtypes.bfloat16):
            for shape in SHAPES:
                row = errors(name, dtype, shape, device)
                worst = max(worst, *row)
                print(f"{name:26} {np.dtype(dtype).name:9} {shape!s:12}", *(f"{e:.2f}" for e in row))
    return int(not worst <= 1)


if __name__ == "__main__":
    sys.exit(main())
