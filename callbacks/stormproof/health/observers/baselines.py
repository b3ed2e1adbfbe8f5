"""What the loss of a step is compared with: a constant prediction's, and that of other samples' targets."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn

from stormproof.health.observers.input_target_dependence import Samples
from stormproof.health.observers.objective import Objective, TargetPool, facts_of, find_objective, given_losses
from stormproof.health.observers.step_trace import CloserLook
from stormproof.health.record import Comparison, PredictionFacts

UNKNOWN = 5
"""Close looks, after which a loss that nothing reproduces is looked for no longer."""


class Comparing:
    """Finds the loss of the steps that are looked at, and what else it would have been.

    Args:
        module: whose steps.
        given: the loss, if the user told.

    Attributes:
        objective: the last loss known, without its tensors.
        pool: the targets seen.
        samples: some of the inputs, with their targets.
        targets: Indices of the batch tensors that are targets of the loss. Empty until known.
    """

    def __init__(self, module: nn.Module, given: Callable[..., Any] | None) -> None:
        self._module, self._given = module, given
        self._unknown = 0  # close looks whose loss nothing reproduced
        self.objective: Objective | None = None
        self.pool, self.samples = TargetPool(), Samples()
        self.targets: frozenset[int] = frozenset()

    def look(
        self, look: CloserLook, output: Any, loss: Any, step: int, epoch: int, *, one_loss: bool
    ) -> tuple[tuple[PredictionFacts, ...], Comparison | None]:
        """What the losses of a step were called with, and its own beside others; None where that is not known.

        Args:
            look: at the step.
            output: what ``training_step`` returned.
            loss: of it.
            step: the optimizer steps that were done.
            epoch: the running one.
            one_loss: whether there is no other; of several none is compared.
        """
        known = None
        if isinstance(loss, torch.Tensor) and loss.numel() == 1:
            known = self._find(look, output, loss.detach(), tells=one_loss)
        objectives = given_losses(look) if known is None else [known]
        if isinstance(loss, torch.Tensor):  # excludes tensors that only a metric uses
            of_loss = look.origins.of(loss).data
            self.targets = of_loss.intersection(index for each in objectives for index in each.target_of)
        parts = [each.of_a_part() for each in objectives]
        facts = tuple(facts_of(part) for part in parts if part is not None)
        part = None if known is None else parts[0]
        if part is None or not one_loss or not part.is_given:
            return facts, None
        with warnings.catch_warnings(action="ignore"):  # torch has said it of the user's own step
            return facts, self._compare(part, look, step, epoch)

    def _find(self, look: CloserLook, output: Any, loss: torch.Tensor, *, tells: bool) -> Objective | None:
        """The loss of the step; says once that what needs it is left out, where nothing reproduces it."""
        if self._unknown >= UNKNOWN:
            look.meetings = []
        objective = find_objective(look, output, loss, self._module, self._given)
        if objective is not None:
            self.objective = objective.without_tensors()
            return objective
        self._unknown += 1
        if self._given is not None and self._unknown == 1:
            rank_zero_warn(
                "TrainingHealth(loss=…) wants a training_step that returns {'loss', 'preds', 'target'}, with that loss "
                "of these two; here, what needs them is left out"
            )
        elif self._given is None and self.objective is None and self._unknown == UNKNOWN and tells:
            rank_zero_info(
                "TrainingHealth: no loss that it knows gives what training_step returned, so that the comparisons with "
                "a constant and with other samples' targets are left out; TrainingHealth(loss=…), and {'loss', "
                "'preds', 'target'} from training_step, bring them back"
            )
        return None

    def _compare(self, objective: Objective, look: CloserLook, step: int, epoch: int) -> Comparison | None:
        if look.inputs is not None:
            self.samples.add(look.inputs, objective.target)
        self.pool.add(objective.target)
        value = float(objective.function(objective.prediction, objective.target))
        if not math.isfinite(value):
            return None
        return Comparison(step, epoch, value, self.pool.constant_loss(objective, self._given), objective.of_others())
