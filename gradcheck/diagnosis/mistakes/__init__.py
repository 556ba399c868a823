"""The known mistakes of each family of gradients: what the terms are if one is made, and its name in words.

Each is yielded as a Hypothesis. The first of a family is the right formula, whose words are empty; a term
that is left out, or has the wrong sign or factor, needs no hypothesis of its own: the coefficients show it.

    inputs       of the input of a normalization
    parameters   of its weight and bias
    records      the formulas of other normalizations, for both
    epsilon      another ε, which is no linear term
    masks        of dropout
"""

from gradcheck.diagnosis.mistakes.common import Hypothesis
from gradcheck.diagnosis.mistakes.epsilon import AtEps, with_eps
from gradcheck.diagnosis.mistakes.inputs import of_x
from gradcheck.diagnosis.mistakes.masks import of_mask
from gradcheck.diagnosis.mistakes.parameters import of_parameter

__all__ = ["AtEps", "Hypothesis", "of_mask", "of_parameter", "of_x", "with_eps"]
