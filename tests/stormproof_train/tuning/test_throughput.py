from itertools import count

import pytest

from stormproof_train.tuning import throughput
from stormproof_train.tuning.throughput import Throughput, measure_throughputs
from tests.support.hydra_configs import compose_plan


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec", "ignore:.*does not have many workers")
def test_a_size_that_might_take_too_much_memory_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = count(step=2**30)  # this process may have had more before, and then its peak does not rise
    monkeypatch.setattr(throughput, "_peak_process_memory", lambda: next(peaks))
    plan = compose_plan("logger=none", "callbacks=none", "trainer=cpu")
    results = list(measure_throughputs(plan, [8, 16, 32], 1257, seconds=0.01, max_free_fraction=1e-15))
    *measured, last_result = results
    assert [measurement.batch_size for measurement in measured if isinstance(measurement, Throughput)] == [8]
    assert str(last_result).startswith("16 might take ")
