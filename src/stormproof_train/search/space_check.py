"""Checks a search space before the search starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from stormproof_train.build_task import build_task
from stormproof_train.config.plan import Plan
from stormproof_train.data.spec import DataSpec, infer_spec
from stormproof_train.errors import UserError
from stormproof_train.metrics import evaluation_metrics
from stormproof_train.search.arguments import Arguments, Composer
from stormproof_train.search.settings import Settings
from stormproof_train.search.space import Parameter, Space


def check_space(arguments: Arguments, composer: Composer) -> None:
    """Builds the task for each choice and for both ends of each interval.

    Raises:
        UserError: If a run with one of these values would fail to start.
    """
    default = composer.compose_plan(arguments.fixed_overrides)
    _check_finite_length(default, arguments.settings)
    data, spec = _build(default)
    metric_names = {f"val/{name}" for name in (*evaluation_metrics(spec), "loss")}
    for name in arguments.settings.validation_metrics:
        if name not in metric_names:
            raise UserError(f"validation of these data measures {', '.join(sorted(metric_names))}, not {name}")
    for parameter in arguments.space.parameters:
        condition_overrides = _condition_overrides(parameter, arguments.space)
        for value in _values_to_try(parameter):
            override = f"{parameter.key}={value}"
            try:
                plan = composer.compose_plan([*arguments.fixed_overrides, *condition_overrides, override])
                if plan.data == default.data:
                    build_task(plan, data, spec, plan.bind_loss(spec.task))
                else:
                    _build(plan)
            except UserError as error:
                hint = "; use int(interval(…))" if isinstance(value, float) and "must be int" in str(error) else ""
                raise UserError(f"{override} cannot be searched: {error}{hint}") from error


def _build(plan: Plan) -> tuple[pl.LightningDataModule, DataSpec]:
    data = plan.data.build(seed=plan.seed)
    spec = infer_spec(data)
    build_task(plan, data, spec, plan.bind_loss(spec.task))
    return data, spec


def _check_finite_length(plan: Plan, settings: Settings) -> None:
    trainer: Mapping[str, Any] = plan.trainer.arguments()
    if settings.effective_pruner != "none" and trainer["max_epochs"] == -1 and trainer["max_steps"] == -1:
        raise UserError(
            f"search.pruner={settings.effective_pruner} needs runs of finite length: set trainer.max_epochs above 0, "
            "or trainer.max_steps"
        )


def _condition_overrides(parameter: Parameter, space: Space) -> list[str]:
    """Returns the override of a choice under which a parameter exists, if the choice is searched too."""
    group = parameter.key.partition(".")[0]
    choices = next(
        (candidate.values() for candidate in space.parameters if candidate.key == group != parameter.key), None
    )
    return [f"{group}={min(parameter.only_with.get(group, choices))}"] if choices else []


def _values_to_try(parameter: Parameter) -> list[Any]:
    fields = parameter.as_dict()
    return fields["choices"] or [fields["low"], fields["high"]]
