"""A warning of torch names the line that it names without Stormproof."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its name everywhere)
from torch.overrides import TorchFunctionMode

from stormproof import TrainingHealth
from stormproof.health.observers.torch_losses import LossRecorder
from stormproof.health.observers.tracing.provenance import ProvenanceTracker
from stormproof.units.functional_trace import FunctionalTrace
from tests.support.small_fits import RegressionModule, make_loader, make_module, make_trainer

INPUTS = torch.ones(2, 3, 4)


MODES: dict[str, Callable[[], list[TorchFunctionMode]]] = {
    "units": lambda: [FunctionalTrace(lambda *_: None)],
    "origins": lambda: [ProvenanceTracker({}, [INPUTS], lambda *_: None)],
    "losses": lambda: [LossRecorder()],
    "all": lambda: [FunctionalTrace(lambda *_: None), ProvenanceTracker({}, [INPUTS], lambda *_: None), LossRecorder()],
}
WARNING: dict[str, Callable[[], object]] = {
    "a function": lambda: F.softmax(INPUTS),
    "a module": lambda: nn.Softmax()(INPUTS),
    "two levels": lambda: F.mse_loss(INPUTS, INPUTS[:1]),
    "C++": lambda: torch.nested.nested_tensor([INPUTS[0], INPUTS[1]]),
}


def collect_warnings(function: Callable[[], object], modes: list[TorchFunctionMode]) -> list[tuple[str, int, str]]:
    with contextlib.ExitStack() as stack, warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always")
        torch.set_warn_always(True)
        stack.callback(torch.set_warn_always, False)
        for mode in modes:
            stack.enter_context(mode)
        function()
    return [(record.filename, record.lineno, str(record.message)) for record in records]


@pytest.mark.parametrize("warning", WARNING)
@pytest.mark.parametrize("mode", MODES)
def test_a_warning_names_the_same_line(mode: str, warning: str):
    expected = collect_warnings(WARNING[warning], [])
    assert expected
    assert collect_warnings(WARNING[warning], MODES[mode]()) == expected


@pytest.mark.parametrize("mode", MODES)
def test_a_filter_by_module_finds_it(mode: str):
    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module=__name__)
        for warning in MODES[mode]():
            stack.enter_context(warning)
        F.softmax(INPUTS)


def test_what_is_compiled_meanwhile_is_compiled_whole():
    compiled = torch.compile(lambda inputs: F.relu(F.softmax(inputs, dim=1)).sum(), backend="eager", fullgraph=True)
    with ProvenanceTracker({}, [INPUTS], lambda *_: None):
        assert compiled(INPUTS) == pytest.approx(8.0)
    torch.compiler.reset()


class Deprecated(RegressionModule):
    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) + F.softmax(INPUTS).mean()


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*", "ignore:.*does not have many workers.*")
def test_a_training_step_is_named():
    with pytest.warns(UserWarning, match="Implicit dimension choice") as records:
        make_trainer(callbacks=[TrainingHealth()]).fit(make_module(kind=Deprecated), make_loader())
    files = {record.filename for record in records if "Implicit dimension" in str(record.message)}
    assert files == {__file__}
