import pytest
import pytorch_lightning as pl

from stormproof import DeadNeuronDetector, TrainingHealth
from stormproof.errors import StormproofError
from stormproof.lightning import internals
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, make_loader, make_module, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS


@pytest.mark.parametrize("callback", [DeadNeuronDetector(), TrainingHealth()])
def test_callbacks_that_need_whole_layers_are_refused(callback: pl.Callback, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(internals, "tensor_parallel_size", lambda _: 2)
    name = type(callback).__name__
    with pytest.raises(StormproofError, match=rf"^{name} requires .*, but 2 ranks split .*remove {name}"):
        make_trainer(callbacks=[callback]).fit(make_module(), make_loader())
