"""The problems that a diagnosis can report. Each has a code and a page in the documentation."""

from __future__ import annotations

from enum import StrEnum

CATALOGUE_URL = "https://stormproof.github.io/stormproof/reference/findings/"
"""Base URL of the pages of all problems."""


class Problem(StrEnum):
    """A problem that the default rules detect.

    Example:
        >>> Problem.DEAD_UNITS.code
        'DEAD_UNITS'
    """

    NON_FINITE_DATA = "non_finite_data"
    """A batch contains NaN or infinity."""
    NON_FINITE = "non_finite"
    """The network, the loss, a gradient or the weights are NaN or infinite, although the data is finite."""
    NOT_IN_OPTIMIZER = "not_in_optimizer"
    """Trainable parameters are in no optimizer."""
    IN_TWO_OPTIMIZERS = "in_two_optimizers"
    """Parameters are in two optimizers, or twice in one."""
    NO_GRADIENT = "no_gradient"
    """A layer receives no gradient."""
    WEIGHTS_UNCHANGED = "weights_unchanged"
    """A layer has a gradient and an optimizer, but its weights do not change."""
    LEARNING_RATE_ZERO = "learning_rate_zero"
    """The learning rate is zero or negligible."""
    LEARNING_RATE_TOO_HIGH = "learning_rate_too_high"
    """The updates are too large for the loss to fall."""
    LEARNING_RATE_TOO_LOW = "learning_rate_too_low"
    """The updates are too small for the planned number of steps."""
    GRADIENTS_NOT_CLEARED = "gradients_not_cleared"
    """Gradients of earlier steps are added to those of later steps, because ``zero_grad`` is not called."""
    VANISHING_GRADIENTS = "vanishing_gradients"
    """The gradient shrinks from layer to layer, so that the first layers do not learn."""
    EXPLODING_GRADIENTS = "exploding_gradients"
    """The gradient grows from layer to layer, or from step to step, until training fails."""
    DEAD_UNITS = "dead_units"
    """Most units of a layer are dead: their output does not depend on the input."""
    BATCH_NORM_STATISTICS_LAG = "batch_norm_statistics_lag"
    """The running statistics of batch norm are out of date and degrade the network in evaluation mode."""
    SATURATED_UNITS = "saturated_units"
    """Most outputs of a bounded activation are near its limits, where its gradient is almost zero."""
    OUTPUT_IGNORES_INPUT = "output_ignores_input"
    """The output is the same for all samples."""
    NO_BETTER_THAN_CONSTANT = "no_better_than_constant"
    """The loss is not below the loss of the best constant prediction."""
    DEGENERATE_TARGETS = "degenerate_targets"
    """All targets are identical."""
    TARGETS_UNRELATED_TO_INPUTS = "targets_unrelated_to_inputs"
    """Predictions fit the targets of other samples as well as their own."""
    BROADCAST_MISMATCH = "broadcast_mismatch"
    """Predictions and targets have different shapes that torch broadcasts, such as (N, 1) and (N,)."""
    INPUT_BADLY_SCALED = "input_badly_scaled"
    """The input is too large, too small or too far from zero for the network to train well."""
    LOSS_INPUT_MISMATCH = "loss_input_mismatch"
    """The loss receives another kind of input than it expects, such as probabilities instead of logits."""
    UNREACHABLE_TARGETS = "unreachable_targets"
    """Targets are outside the range of the last activation."""
    BATCH_SIZE_INEFFICIENT = "batch_size_inefficient"
    """The batch is far smaller or larger than the noise scale of the gradient."""
    PLATEAU = "plateau"
    """The loss fell and has stopped falling."""
    LOSS_SPIKE = "loss_spike"
    """The loss jumped far above its previous values."""
    OVERFITTING = "overfitting"
    """The validation loss rises while the training loss falls."""
    REPLICAS_DIVERGED = "replicas_diverged"
    """The ranks have different weights."""
    DATA_STARVATION = "data_starvation"
    """Most steps wait longer for data than they compute."""
    SLOW_RANK = "slow_rank"
    """One rank is slower than the others, which wait for it in each step."""

    @property
    def code(self) -> str:
        """Name of the problem in messages.

        Example:
            >>> Problem.DEAD_UNITS.code
            'DEAD_UNITS'
        """
        return self.name

    @property
    def url(self) -> str:
        """URL of the problem's page in the documentation.

        Example:
            >>> Problem.DEAD_UNITS.url
            'https://stormproof.github.io/stormproof/reference/findings/dead-units.html'
        """
        return f"{CATALOGUE_URL}{self.value.replace('_', '-')}.html"
