"""Expected inputs of torch losses, and their best constant predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch.nn import functional as F  # noqa: N812 (its name everywhere)
from torch.overrides import TorchFunctionMode

from stormproof.units.callers_line import call_at_callers_line

LossInput = Literal["logits", "log-probabilities", "probabilities", "numbers", "log-rates", "rates", "scores"]

LOSS_INPUTS: dict[str, LossInput] = {
    "cross_entropy": "logits",
    "nll_loss": "log-probabilities",
    "binary_cross_entropy_with_logits": "logits",
    "binary_cross_entropy": "probabilities",
    "mse_loss": "numbers",
    "l1_loss": "numbers",
    "smooth_l1_loss": "numbers",
    "huber_loss": "numbers",
    "poisson_nll_loss": "log-rates",
    "kl_div": "log-probabilities",
    "multi_margin_loss": "scores",
    "soft_margin_loss": "scores",
    "multilabel_soft_margin_loss": "logits",
}
"""Expected inputs of losses of (prediction, target), by function name."""

OTHER_LOSS_INPUTS: dict[str, LossInput] = {
    "ctc_loss": "log-probabilities",
    "cosine_embedding_loss": "scores",
    "hinge_embedding_loss": "scores",
    "margin_ranking_loss": "scores",
}
"""Expected inputs of losses that are not compared with a constant prediction, by function name."""

ELEMENTWISE = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "poisson_nll_loss", "soft_margin_loss"})
"""Losses that broadcast predictions and targets."""

MIN_SHARE = 1e-12
"""Minimum share of a class, so that its logarithm is finite."""
MIN_SEQUENCES_PER_CLASS = 20
"""Minimum number of sequences per class to compute class shares for each position. Fewer sequences overfit."""


def find_loss_input(name: str, arguments: Mapping[str, Any]) -> LossInput | None:
    """Returns the expected input of a loss with keyword ``arguments``. None if unknown."""
    if name == "poisson_nll_loss" and not arguments.get("log_input", True):
        return "rates"
    return LOSS_INPUTS.get(name) or OTHER_LOSS_INPUTS.get(name)


def torch_losses() -> dict[str, Callable[..., torch.Tensor]]:
    """Returns the standard losses by name, to match the value of a loss with them."""
    return {name: getattr(F, name) for name in LOSS_INPUTS}


def best_constant(name: str, arguments: Mapping[str, Any], target: torch.Tensor, classes: int) -> torch.Tensor | None:
    """Returns the constant prediction with the lowest mean loss over all samples of ``target``.

    For Huber losses it is the better one of mean and median, which is close to the optimum.

    Args:
        name: Name of the loss, one of :data:`LOSS_INPUTS`.
        arguments: Other arguments of the loss.
        target: Targets of shape (N, …).
        classes: Size of the second dimension of the prediction.

    Returns:
        Prediction of shape (1, …), or None if it is unknown.
    """
    if name in {"cross_entropy", "nll_loss"}:
        return _log_class_shares(name, arguments, target, classes)
    if not target.is_floating_point():
        return None
    mean, median = target.double().mean(0, keepdim=True), target.double().median(0, keepdim=True).values
    if name in {"smooth_l1_loss", "huber_loss"}:
        return min(
            (mean, median), key=lambda constant: float(getattr(F, name)(constant.expand_as(target), target.double()))
        )
    if name == "poisson_nll_loss":
        return mean.clamp_min(MIN_SHARE).log() if arguments.get("log_input", True) else mean
    if name == "binary_cross_entropy_with_logits":
        weight = arguments.get("pos_weight")
        positive_share = mean if weight is None else mean * weight.to(mean)
        return (positive_share.clamp_min(MIN_SHARE) / (1 - mean).clamp_min(MIN_SHARE)).log()
    return {"mse_loss": mean, "l1_loss": median, "binary_cross_entropy": mean.clamp(MIN_SHARE, 1 - MIN_SHARE)}.get(name)


class LossRecorder(TorchFunctionMode):
    """Context manager that records the values of standard losses."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[tuple[str, torch.Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs ``func`` and records its value if it is a standard loss."""
        output = call_at_callers_line(func, args, kwargs or {})
        if getattr(func, "__name__", "") in LOSS_INPUTS and isinstance(output, torch.Tensor) and output.numel() == 1:
            self.values.append((func.__name__, output.detach()))
        return output


def _log_class_shares(
    name: str, arguments: Mapping[str, Any], target: torch.Tensor, classes: int
) -> torch.Tensor | None:
    """Returns the logarithms of the class shares. None if the target has no classes.

    Computes separate shares for each position if the targets are sequences and there are enough of them.
    """
    weight, smoothing = arguments.get("weight"), arguments.get("label_smoothing", 0.0)
    if target.is_floating_point():
        if name == "nll_loss" or target.ndim != 2 or target.size(1) != classes:
            return None
        shares = target.double().mean(0)[:, None]
    else:
        is_class = (target != arguments.get("ignore_index", -100)) & (target >= 0) & (target < classes)
        if not is_class.any():
            return None
        has_positions = target.ndim == 2 and len(target) >= MIN_SEQUENCES_PER_CLASS * classes and bool(is_class.all())
        positions = target.T if has_positions else target[is_class][None]
        shares = torch.stack([torch.bincount(position, minlength=classes).double() for position in positions], 1)
        shares = shares / shares.sum(0)
    shares = (1 - smoothing) * shares + smoothing / classes
    if weight is not None:
        shares = shares * weight.to(shares)[:, None]
    logarithms = (shares / shares.sum(0)).clamp_min(MIN_SHARE).log()[None]
    dimensions = 2 if target.is_floating_point() else target.ndim + 1  # of the prediction
    return logarithms.squeeze(2) if dimensions == 2 else logarithms.view(1, classes, -1, *[1] * (dimensions - 3))
