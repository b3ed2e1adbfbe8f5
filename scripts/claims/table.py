"""The claims, in the order of the article."""

from __future__ import annotations

from claims import continuity, deep, depth, dying, functions, learning_rates, maxout, nonlinearity, outputs, softmax
from claims import robustness as disturbed
from claims.claim import Claim

CLAIMS: list[Claim] = [
    functions.S_SHAPE,
    functions.LINEAR,
    functions.FORMULAS,
    dying.MITIGATES_DYING,
    dying.CONVERGES_FASTER,
    functions.ELU_NEGATIVE,
    functions.ELU_SMALL,
    depth.ELU_SUPPRESSES,
    functions.TANH_RANGE,
    softmax.NORMALIZED,
    softmax.ONE_DIMENSIONAL,
    depth.WITHOUT_ACTIVATION,
    nonlinearity.PURPOSE,
    depth.ELIMINATE,
    functions.NON_NEGATIVE,
    continuity.CONTINUITY,
    deep.OUTSTANDING,
    depth.RELU_SUPPRESSES,
    outputs.RELU_EVERYWHERE,
    nonlinearity.LACKS_NONLINEARITY,
    outputs.BINARY,
    functions.LEAKY_SLOPE,
    disturbed.ROBUSTNESS,
    learning_rates.LEAKY_UNSTABLE,
    dying.NEGATIVE_INPUTS,
    learning_rates.ELU_STEADIES,
    maxout.EXPRESSIVE,
    maxout.ONLY_DEEP,
    maxout.COMPLEX,
]
