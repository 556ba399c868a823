"""Memory of other libraries, as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import devices
from .tensor import Tensor

__all__ = ["from_dlpack"]

# The numbers of DLPack's DLDeviceType: kDLCPU and kDLCUDAHost; kDLCUDA and kDLCUDAManaged.
ON_CPU, ON_GPU = (1, 3), (2, 13)


def from_dlpack(array: Any) -> Tensor:
    """A tensor over the memory of another library's array, on the CPU or a GPU, without a copy.

    array: anything with `__dlpack__` and `__dlpack_device__`: of NumPy, CuPy, torch, JAX, …

    A write by the other library is not seen by the version counter. TypeError where the dtype is none
    that a tensor there may have; BufferError where the memory is neither the CPU's nor a GPU's.
    """
    if not hasattr(array, "__dlpack_device__"):
        raise TypeError(
            f"from_dlpack: got {type(array).__name__}, wanted an array that has __dlpack_device__"
        )
    place, index = array.__dlpack_device__()
    if place in ON_CPU:
        return Tensor.wrap(np.from_dlpack(array))
    if place in ON_GPU:
        device = devices.named(f"cuda:{index}")
        devices.check_available(device)
        return Tensor.wrap(devices.from_gpu(array, device))
    raise BufferError(f"from_dlpack: memory of the kind {int(place)} is neither the CPU's nor a CUDA GPU's")
