"""Functions on `tinygrad_bn.Tensor` as pairs to be checked, and every check of a registered operation."""

from gradcheck.adapters.tinygrad_bn.configurations import call, check_configuration
from gradcheck.adapters.tinygrad_bn.functions import by_name, pair, recognises
from gradcheck.adapters.tinygrad_bn.samples import cases, check_operation

__all__ = ["by_name", "call", "cases", "check_configuration", "check_operation", "pair", "recognises"]
