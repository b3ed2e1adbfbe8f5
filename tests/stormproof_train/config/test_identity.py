import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.hydra_defaults import VERSION_BASE
from stormproof_train.config.identity import RunSpec, compute_identity, flatten, list_differences, result_settings
from stormproof_train.config.overrides import normalize_overrides
from stormproof_train.config.plan import read_plan
from tests.support.cases import slow_except
from tests.support.hydra_configs import compose_plan

Settings = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def settings() -> Settings:
    """The effective arguments of a command line, defaults of signatures included."""

    def compose(*overrides: str) -> dict[str, Any]:
        with hydra.initialize_config_dir(str(conf_dir()), **VERSION_BASE):
            plan = read_plan(hydra.compose("config", normalize_overrides(overrides)))
        task = "regression" if plan.data.path.endswith("Diabetes") else "classification"
        return plan.settings(plan.bind_loss(task))

    return compose


UNCHANGED = [
    ["name=mine"],
    ["runs_dir=/elsewhere"],
    ["resume=must"],
    ["debug=true"],
    ["test=false"],
    ["report=false"],
    ["logger=none"],
    ["logger=tensorboard"],
    ["logger.project=other", "logger.tags=[a,b]"],
    ["data.num_workers=4"],
    ["trainer.devices=8"],
    ["trainer.num_nodes=2", "trainer.strategy=ddp"],
    ["trainer=fsdp", "trainer.strategy.save_distributed_checkpoint=false"],
    ["trainer.log_every_n_steps=1"],
    ["trainer.enable_model_summary=true"],
    ["trainer.profiler=simple"],
    ["~callbacks.step_timer", "~callbacks.preemption", "~callbacks.recovery", "~callbacks.gradient_norms"],
    ["activation=relu"],
    ["initialization=auto"],
    ["seed=0", "optimizer=adamw"],
    ["optimizer.lr=0.001"],
    ["model.width=128"],
    ["loss=cross_entropy"],
]


@pytest.mark.parametrize("words", slow_except(UNCHANGED, UNCHANGED[::5]), ids=" ".join)
def test_what_does_not_change_the_weights_does_not_change_the_identity(words: list[str], settings: Settings):
    assert compute_identity(settings(*words)) == compute_identity(settings())


def test_where_the_data_lies_is_no_part_of_the_identity(settings: Settings):
    overrides = ["data=fashion_mnist"]
    assert compute_identity(settings(*overrides, "data.root=/d", "data.download=true")) == compute_identity(
        settings(*overrides)
    )


@pytest.mark.slow
def test_where_a_table_lies_is_no_part_of_the_identity_and_what_is_in_it_is(tmp_path: Path):
    def identity_of(path: Path, text: str, *overrides: str) -> str:
        path.write_text(text)
        with hydra.initialize_config_dir(str(conf_dir()), **VERSION_BASE):
            plan = read_plan(
                hydra.compose(
                    "config", normalize_overrides(["data=csv", f"data.path={path}", "data.target=y", *overrides])
                )
            )
        return compute_identity(plan.settings(plan.bind_loss("regression"), plan.data.build(seed=0).fingerprint))

    table = "x,y\n" + "".join(f"{row % 2},{row / 3}\n" for row in range(20))
    identity_here = identity_of(tmp_path / "here.csv", table)
    assert identity_of(tmp_path / "there.csv", table) == identity_here
    assert identity_of(tmp_path / "here.csv", table + "1,7\n") != identity_here
    assert identity_of(tmp_path / "here.csv", table, "data.categorical=[x]") != identity_here


CHANGED = [
    ["seed=1"],
    ["optimizer.lr=0.002"],
    ["optimizer=sgd"],
    ["optimizer.weight_decay=0"],
    ["activation=elu"],
    ["activation=elu", "activation.alpha=0.5"],
    ["initialization=torch"],
    ["model.width=64"],
    ["model.widths=[128,128]"],
    ["model=cnn"],
    ["data=diabetes"],
    ["data.batch_size=32"],
    ["data.drop_last=true"],
    ["data.test_fraction=0.2"],
    ["loss=label_smoothing"],
    ["scheduler=cosine"],
    ["scheduler=warmup_cosine"],
    ["callbacks=none"],  # nothing guards against divergence
    ["callbacks.divergence_guard.action=skip"],
    ["callbacks.divergence_guard.every_n_steps=10"],
    ["callbacks=early_stopping"],
    ["callbacks=early_stopping", "callbacks.early_stopping.patience=6"],
    ["trainer.max_epochs=31"],
    ["trainer.precision=bf16-mixed"],
    ["trainer.gradient_clip_val=1.0"],
    ["trainer.accumulate_grad_batches=2"],
]


@pytest.mark.slow
def test_whatever_changes_the_weights_changes_the_identity(settings: Settings):
    identities = {" ".join(overrides): compute_identity(settings(*overrides)) for overrides in [[], *CHANGED]}
    assert len(set(identities.values())) == len(identities), identities


def test_an_identity_is_eight_hex_digits_and_the_name_tells_the_choices(settings: Settings):
    chosen = settings("data=diabetes", "activation=elu")
    assert re.fullmatch("[0-9a-f]{8}", compute_identity(chosen))
    assert RunSpec.from_settings(chosen).name == f"diabetes-mlp-elu-{compute_identity(chosen)}"


@pytest.mark.parametrize("words", [[], ["scheduler=cosine"], ["callbacks=early_stopping"], ["data=fashion_mnist"]])
def test_the_settings_hold_plain_values_and_no_address(words: list[str], settings: Settings):
    chosen = settings(*words)
    text = json.dumps(chosen, allow_nan=False)
    assert json.loads(text) == chosen
    assert "0x" not in text
    assert "<" not in text


def test_the_order_of_augmentations_counts():
    first, second = (compose_plan(f"augmentation=[{parts}]") for parts in ("crop_flip,mixup", "mixup,crop_flip"))
    loss = first.bind_loss("classification")
    assert compute_identity(first.settings(loss)) != compute_identity(second.settings(loss))


def test_the_order_of_the_settings_does_not_matter():
    assert compute_identity({"a": 1, "b": {"c": 2, "d": 3}}) == compute_identity({"b": {"d": 3, "c": 2}, "a": 1})


PRINT_NAME = """
import hydra
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.hydra_defaults import VERSION_BASE
from stormproof_train.config.identity import RunSpec
from stormproof_train.config.plan import read_plan

with hydra.initialize_config_dir(str(conf_dir()), **VERSION_BASE):
    plan = read_plan(hydra.compose("config", ["callbacks=early_stopping", "scheduler=one_cycle"]))
print(RunSpec.from_settings(plan.settings(plan.bind_loss("classification"))).name)
"""


@pytest.mark.slow
def test_every_process_gives_a_run_the_same_name(settings: Settings):
    result = subprocess.run(
        [sys.executable, "-c", PRINT_NAME],
        env={**os.environ, "PYTHONHASHSEED": "1"},  # this one's own is random
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    here = RunSpec.from_settings(settings("callbacks=early_stopping", "scheduler=one_cycle"))
    assert result.stdout.strip() == here.name


def test_differences_name_what_changes_the_result_alone():
    before = {"seed": 0, "model": {"width": 8}, "logger": {"mode": "auto"}, "name": "a", "gone": 1}
    now = {"seed": 1, "model": {"width": 8, "depth": 2}, "logger": {"mode": "online"}, "name": "b"}
    assert list_differences(before, now) == ["gone: 1 -> (not set)", "model.depth: (not set) -> 2", "seed: 0 -> 1"]


KEYS = st.text("abc", min_size=1, max_size=2)
LEAVES = st.none() | st.booleans() | st.integers(-2, 2) | st.floats(-2, 2) | st.text("ab", max_size=2)
NESTED = st.dictionaries(KEYS, st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3)))


@pytest.mark.slow
@hypothesis_settings(database=None, deadline=None)
@given(NESTED)
def test_flat_reaches_every_leaf_by_its_path(nested: dict[str, Any]):
    leaves = dict(flatten(nested))
    for dotted, value in leaves.items():
        leaf: Any = nested
        for part in dotted.split("."):
            leaf = leaf[part]
        assert leaf is value
        assert not isinstance(value, dict) or not value

    def count(value: Any) -> int:
        return sum(count(item) for item in value.values()) if isinstance(value, dict) and value else 1

    assert len(leaves) == (count(nested) if nested else 0)


@pytest.mark.slow
@hypothesis_settings(database=None, deadline=None)
@given(NESTED, NESTED)
def test_two_identities_differ_just_where_a_difference_can_be_named(one: dict[str, Any], other: dict[str, Any]):
    assert (compute_identity(one) == compute_identity(other)) is (list_differences(one, other) == [])


@pytest.mark.parametrize(("one", "other"), [({"lr": 1}, {"lr": 1.0}), ({"lr": 0}, {"lr": 0.0})], ids=["one", "zero"])
def test_a_number_is_the_same_with_and_without_its_point(one: dict[str, Any], other: dict[str, Any]):
    assert compute_identity(one) == compute_identity(other)
    assert list_differences(one, other) == []


def test_a_flag_is_not_the_number_one():
    assert compute_identity({"nesterov": True}) != compute_identity({"nesterov": 1})
    assert list_differences({"nesterov": True}, {"nesterov": 1}) == ["nesterov: True -> 1"]


def test_the_result_settings_are_the_leaves_that_count():
    data = {"_target_": "stormproof_train.data.digits.Digits", "num_workers": 2, "batch_size": 3}
    result_leaves = result_settings({"seed": 1, "data": data, "trainer": {"devices": 4}})
    assert result_leaves == {"seed": 1, "data._target_": data["_target_"], "data.batch_size": 3}


def test_of_anyone_elses_part_every_argument_counts():
    foreign = {"_target_": "mine.Data", "root": "/a", "num_workers": 2}
    first, second = {"data": foreign}, {"data": {**foreign, "root": "/b"}}
    assert compute_identity(first) != compute_identity(second)
    assert list_differences(first, second) == ["data.root: /a -> /b"]
    assert compute_identity({"callbacks": {"step_timer": {"_target_": "stormproof.StepTimer"}}}) == compute_identity(
        {"callbacks": {}}
    )
    assert compute_identity({"callbacks": {"step_timer": {"_target_": "mine.Stop"}}}) != compute_identity(
        {"callbacks": {}}
    )


def test_where_a_file_lies_does_not_count_where_its_content_does():
    original = {
        "initialization": {"_target_": "stormproof_train.initialization.from_checkpoint", "path": "a", "sha256": "1"}
    }
    moved = {"initialization": {**original["initialization"], "path": "b"}}
    changed_content = {"initialization": {**original["initialization"], "sha256": "2"}}
    unknown = {"initialization": {**original["initialization"], "sha256": None}}
    elsewhere = {"initialization": {**unknown["initialization"], "path": "b"}}
    assert compute_identity(original) == compute_identity(moved)
    assert len({compute_identity(config) for config in (original, changed_content, unknown, elsewhere)}) == 4
