"""Tries a space before hours are spent in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from stormproof_train.build_task import build_task
from stormproof_train.config.plan import Plan
from stormproof_train.data.spec import DataSpec, spec_of
from stormproof_train.errors import UserError
from stormproof_train.metrics import evaluation_metrics
from stormproof_train.search.arguments import Asked, Composer
from stormproof_train.search.settings import Settings
from stormproof_train.search.space import Parameter, Space


def check(asked: Asked, composer: Composer) -> None:
    """Builds what a run would train, for each value of a choice and both ends of each interval.

    Args:
        asked: what is to be searched.
        composer: of the configs.

    Raises:
        UserError: what a run with that value would say.
    """
    default = composer.plan(asked.fixed)
    _refuse_endless(default, asked.settings)
    data, spec = _built(default)
    known = {f"val/{name}" for name in (*evaluation_metrics(spec), "loss")}
    for name in asked.settings.told_metrics:
        if name not in known:
            raise UserError(f"validation measures {', '.join(sorted(known))} of these data, and not {name}")
    for parameter in asked.space.parameters:
        under = _chosen_above(parameter, asked.space)
        for value in _tried(parameter):
            word = f"{parameter.key}={value}"
            try:
                plan = composer.plan([*asked.fixed, *under, word])
                if plan.data == default.data:
                    build_task(plan, data, spec, plan.loss_for(spec.task))
                else:
                    _built(plan)
            except UserError as error:
                whole = "; write int(interval(…))" if isinstance(value, float) and "should be int" in str(error) else ""
                raise UserError(f"{word} cannot be searched: {error}{whole}") from error


def _built(plan: Plan) -> tuple[pl.LightningDataModule, DataSpec]:
    data = plan.data.build(seed=plan.seed)
    spec = spec_of(data)
    build_task(plan, data, spec, plan.loss_for(spec.task))
    return data, spec


def _refuse_endless(plan: Plan, settings: Settings) -> None:
    trainer: Mapping[str, Any] = plan.trainer.arguments()
    if settings.effective_pruner != "none" and trainer["max_epochs"] == -1 and trainer["max_steps"] == -1:
        raise UserError(
            f"search.pruner={settings.effective_pruner} wants runs with an end: set trainer.max_epochs above 0, or "
            "trainer.max_steps"
        )


def _chosen_above(parameter: Parameter, space: Space) -> list[str]:
    """The choice under which a parameter is tried, where the choice is searched too."""
    group = parameter.key.partition(".")[0]
    choices = next((each.values() for each in space.parameters if each.key == group != parameter.key), None)
    return [f"{group}={min(parameter.only_with.get(group, choices))}"] if choices else []


def _tried(parameter: Parameter) -> list[Any]:
    known = parameter.as_dict()
    return known["choices"] or [known["low"], known["high"]]
