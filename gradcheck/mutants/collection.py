"""The whole set."""

from __future__ import annotations

from gradcheck.mutants import outsider, outsider_calls, outsider_shapes
from gradcheck.mutants.mutant import Mutant, mutants_of
from gradcheck.mutants.named import NAMED

__all__ = ["NAMED", "OUTSIDER"]

# Written by somebody who had not read the checker.
OUTSIDER: tuple[Mutant, ...] = tuple(
    mutant for module in (outsider, outsider_calls, outsider_shapes) for mutant in mutants_of(module)
)
