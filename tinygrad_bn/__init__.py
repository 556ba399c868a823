"""A minimal tape-based autograd framework whose normalizations and dropouts are fused kernels.

    >>> import tinygrad_bn as tg
    >>> x = tg.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 7.0]], requires_grad=True)
    >>> y = tg.functional.layer_norm(x, 3)
    >>> (y * y * y).sum().backward()
    >>> x.grad.shape
    (2, 3)

It has no relation to the project named tinygrad.
"""

from . import functional, ops
from .autograd import grad, jvp, vjp
from .exchange import from_dlpack
from .fused import explain, operation
from .kernels.cpu.memory import release_memory
from .random import Generator, default_generator, manual_seed
from .registry import REGISTRY, BenchCase, Kernel, OpSpec, Registry, Sample
from .tape import enable_grad, is_grad_enabled, no_grad
from .tensor import Tensor, tensor
from .trace import record

__version__ = "0.1.0"

__all__ = [
    "REGISTRY", "BenchCase", "Generator", "Kernel", "OpSpec", "Registry", "Sample", "Tensor",
    "default_generator", "enable_grad", "explain", "from_dlpack", "functional", "grad", "is_grad_enabled",
    "jvp", "manual_seed", "no_grad", "operation", "ops", "record", "release_memory", "tensor", "vjp",
]  # fmt: skip
