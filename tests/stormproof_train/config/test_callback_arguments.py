from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import OnExceptionCheckpoint

from stormproof_train.config.callback_arguments import CALLBACK_ARGUMENTS, CallbackArguments
from stormproof_train.config.signature_binding import Target
from tests.support.forked_command import ROOT
from tests.support.hydra_configs import compose_plan

HERE = __name__


class Named(Callback):
    def __init__(self, identity: str, run_folder: Path | None = None, factor: float = 2.0) -> None:
        self.got = (identity, run_folder, factor)


class TakesAnything(Callback):
    def __init__(self, **options: Any) -> None:
        self.got = options


ARGUMENTS = CallbackArguments(
    run_folder=Path("/runs/mine"),
    dirpath=Path("/runs/mine/checkpoints"),
    identity="0123abcd",
    datamodule=SimpleNamespace(),  # pyright: ignore[reportArgumentType] (any object will do)
    advise=lambda finding: None,
    on_hang=None,
)


def _target(name: str, *overrides: str) -> Target:
    return compose_plan("callbacks=none", f"+callbacks.mine._target_={name}", *overrides).callbacks["mine"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ("0123abcd", Path("/runs/mine"), 2.0)),
        (["+callbacks.mine.run_folder=null", "+callbacks.mine.identity=mine"], ("mine", None, 2.0)),
    ],
    ids=["from the run", "from the config"],
)
def test_a_callback_receives_values_by_parameter_name_unless_the_config_sets_them(
    overrides: list[str], expected: tuple[Any, ...]
):
    assert _target(f"{HERE}.Named", *overrides).build(**vars(ARGUMENTS)).got == expected


def test_values_from_the_run_are_not_settings():
    assert _target(f"{HERE}.Named").arguments() == {"_target_": f"{HERE}.Named", "factor": 2.0}


def test_variable_keyword_arguments_receive_nothing():
    assert _target(f"{HERE}.TakesAnything").build(**vars(ARGUMENTS)).got == {}


def test_a_callback_of_lightning_receives_the_checkpoint_folder():
    callback = _target("pytorch_lightning.callbacks.OnExceptionCheckpoint").build(**vars(ARGUMENTS))
    assert isinstance(callback, OnExceptionCheckpoint)
    assert callback.dirpath == ARGUMENTS.dirpath


@pytest.mark.parametrize("page", ["docs/how-to/extend.md", "CONTRIBUTING.md"])
def test_every_name_is_documented(page: str):
    text = (ROOT / page).read_text()
    assert [name for name in sorted(CALLBACK_ARGUMENTS) if f"`{name}`" not in text] == []
