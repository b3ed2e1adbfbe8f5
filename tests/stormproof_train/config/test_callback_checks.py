import pytest

from stormproof_train.config.overrides import normalize_overrides
from stormproof_train.data.spec import DataSpec
from stormproof_train.errors import UserError
from stormproof_train.metric_direction import higher_is_better
from stormproof_train.metrics import evaluation_metrics
from tests.support.hydra_configs import compose_plan

EARLY, SWA = "callbacks=early_stopping", "callbacks=swa"
GAP = "stormproof_train.generalization.GeneralizationGap"
UNTRAINED = r"and swa_epoch_start=\S+\. Set more epochs, or a later"
REFUSED = {
    "stopping because accuracy rises": (
        [EARLY, "callbacks.early_stopping.monitor=val/accuracy"],
        "mode=min is wrong for val/accuracy, for which higher is better. Set callbacks.recovery.mode=max callback",
    ),
    "keeping the worst": (
        ["callbacks.recovery.monitor=val/rmse", "callbacks.recovery.mode=max"],
        "is wrong for val/rmse, for which lower is better. Set callbacks.recovery.mode=min.$",
    ),
    "an average of one epoch": ([SWA, "trainer.max_epochs=1"], f"trainer.max_epochs=1 {UNTRAINED}"),
    "an average of two epochs": ([SWA, "trainer.max_epochs=2"], f"trainer.max_epochs=2 {UNTRAINED}"),
    "an average from the first epoch on": ([SWA, "callbacks.swa.swa_epoch_start=1"], UNTRAINED),
    "an average of nothing": (
        [SWA, "callbacks.swa.swa_epoch_start=31"],
        "swa_epoch_start=31 must not exceed the 30 epochs",
    ),
    "an average by the step": (
        [SWA, "trainer.max_steps=100"],
        "callbacks.swa counts epochs, and trainer.max_steps may end the",
    ),
    "two averages": (["callbacks=[swa,ema]"], "callbacks.swa and callbacks.ema both set the tested weights"),
    "a gap of weights that were not validated": (
        ["callbacks=ema", "~callbacks.generalization_gap", f"callbacks.gap._target_={GAP}"],
        "callbacks.gap measures the validated weights, so it must precede callbacks.ema",
    ),
    "an average of some epochs of sharded weights": (
        ["trainer=fsdp", SWA],
        "callbacks.swa does not support the sharded weights of trainer=fsdp. Use callbacks=ema",
    ),
    "an average of sharded weights without recovery": (
        ["trainer=fsdp", "callbacks=ema", "~callbacks.recovery"],
        "callbacks.ema can average the sharded weights of trainer=fsdp only after stormproof.CheckpointRecovery",
    ),
    "an average that is not tested": (
        ["callbacks=[swa,early_stopping]"],
        r"callbacks.swa averages weights until the end, but callbacks.\w+.monitor selects the weights of an earlier",
    ),
}


@pytest.mark.parametrize(("words", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_test_other_weights_than_are_meant_is_refused(words: list[str], sentence: str):
    with pytest.raises(UserError, match=sentence) as excinfo:
        compose_plan(*normalize_overrides(words))
    assert "\n" not in str(excinfo.value)


FINE = {
    "early stopping": [EARLY],
    "stopping by accuracy": [
        EARLY, "callbacks.early_stopping.monitor=val/accuracy", "callbacks.early_stopping.mode=max",
        "callbacks.recovery.mode=max",
    ],
    "stopping by what we do not know": [
        EARLY, "callbacks.early_stopping.monitor=units/sparsity", "callbacks.early_stopping.mode=max"
    ],
    "an average of three epochs": [SWA, "trainer.max_epochs=3"],
    "an average of a run without an end": [SWA, "trainer.max_epochs=-1", "callbacks.swa.swa_epoch_start=2"],
    "early stopping with a moving average": ["callbacks=[early_stopping,ema]"],
    "a moving average of sharded weights": ["trainer=fsdp", "callbacks=ema"],
}  # fmt: skip


@pytest.mark.parametrize("words", FINE.values(), ids=FINE.keys())
def test_what_fits_is_let_through(words: list[str]):
    plan = compose_plan(*normalize_overrides(words))
    if "early_stopping" in plan.callbacks:  # the weights that are tested follow the same metric
        stopping, recovery = (plan.callbacks[name].arguments() for name in ("early_stopping", "recovery"))
        assert stopping["monitor"] == recovery["monitor"]


@pytest.mark.parametrize("spec", [DataSpec((4,), 3, 3), DataSpec((4,), None, 1)], ids=["classes", "numbers"])
def test_the_direction_of_a_metric_is_torchmetrics(spec: DataSpec):
    for name, metric in evaluation_metrics(spec).items():
        assert higher_is_better(f"val/{name}") is metric.higher_is_better
