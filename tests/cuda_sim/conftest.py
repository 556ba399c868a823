"""The tests in this folder run in numba's CUDA simulator: `make test-cuda-sim`. Families use `harness.py`."""

import pytest

pytest.register_assert_rewrite("harness")
