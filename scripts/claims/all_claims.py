"""The claims in the order of the article."""

from __future__ import annotations

from claims import (
    continuity,
    deep_networks,
    dying_units,
    functions,
    layer_gradients,
    learning_rate_stability,
    maxout_capacity,
    nonlinearity,
    output_activations,
    softmax,
)
from claims import robustness as disturbed
from claims.claim import Claim

CLAIMS: list[Claim] = [
    functions.S_SHAPE,
    functions.LINEAR,
    functions.FORMULAS,
    dying_units.MITIGATES_DYING,
    dying_units.CONVERGES_FASTER,
    functions.ELU_NEGATIVE,
    functions.ELU_SMALL,
    layer_gradients.ELU_SUPPRESSES,
    functions.TANH_RANGE,
    softmax.NORMALIZED,
    softmax.ONE_DIMENSIONAL,
    layer_gradients.WITHOUT_ACTIVATION,
    nonlinearity.PURPOSE,
    layer_gradients.ELIMINATE,
    functions.NON_NEGATIVE,
    continuity.CONTINUITY,
    deep_networks.OUTSTANDING,
    layer_gradients.RELU_SUPPRESSES,
    output_activations.RELU_EVERYWHERE,
    nonlinearity.LACKS_NONLINEARITY,
    output_activations.BINARY,
    functions.LEAKY_SLOPE,
    disturbed.ROBUSTNESS,
    learning_rate_stability.LEAKY_UNSTABLE,
    dying_units.NEGATIVE_INPUTS,
    learning_rate_stability.ELU_STEADIES,
    maxout_capacity.EXPRESSIVE,
    maxout_capacity.ONLY_DEEP,
    maxout_capacity.COMPLEX,
]
