from itertools import count

import pytest

from stormproof_train.tuning import throughput
from stormproof_train.tuning.throughput import Throughput, throughputs
from tests.support.configured import composed


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec", "ignore:.*does not have many workers")
def test_a_size_that_might_take_too_much_memory_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = count(step=2**30)  # this process may have had more before, and then its peak does not rise
    monkeypatch.setattr(throughput, "_peak_of_process", lambda: next(peaks))
    plan = composed("logger=none", "callbacks=none", "trainer=cpu")
    told = list(throughputs(plan, [8, 16, 32], 1257, seconds=0.01, share_of_free=1e-15))
    *measured, ended = told
    assert [each.batch_size for each in measured if isinstance(each, Throughput)] == [8]
    assert str(ended).startswith("16 might take ")
