"""The operations: one file per family, one declaration per operation. Importing this package declares the
built-in ones.
"""

from . import activations, arithmetic, dropouts, linalg, norms, reductions, shaping

__all__ = ["activations", "arithmetic", "dropouts", "linalg", "norms", "reductions", "shaping"]
