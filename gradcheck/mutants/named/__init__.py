"""Wrong twins with names, in one file for each way to be wrong."""

from __future__ import annotations

from gradcheck.mutants.mutant import Mutant, mutants_of
from gradcheck.mutants.named import calls, contracts, formula, others, places, shapes, tiny, unseen

__all__ = ["NAMED"]

NAMED: tuple[Mutant, ...] = tuple(
    mutant
    for module in (formula, others, tiny, places, shapes, contracts, calls, unseen)
    for mutant in mutants_of(module)
)
