import numpy as np
import pytest
import torch

from stormproof_train.evaluation.prediction_store import PredictionStore, hash_samples, interleave_ranks


def test_the_batches_of_a_pass_are_the_split():
    tested = PredictionStore("values")
    for values in ([1.0, 2.0], [3.0]):
        tested.append(torch.tensor(values), torch.tensor(values)[:, None], torch.tensor(values)[:, None] + 1)
    tested.gather(loader=None)
    predictions = tested.predictions()
    assert (predictions.kind, predictions.outputs.ravel().tolist(), predictions.target.ravel().tolist()) == (
        "values", [1.0, 2.0, 3.0], [2.0, 3.0, 4.0]
    )  # fmt: skip
    assert np.array_equal(predictions.samples, hash_samples(torch.tensor([1.0, 2.0, 3.0])))


def test_samples_are_told_apart_by_their_bytes_alone_whatever_batch_they_come_in():
    images = torch.rand(6, 3, 4, 5)
    images[4] = images[1]
    images[5] = images[1]
    images[5, 2, 3, 4] += 1e-7
    whole = hash_samples(images)
    assert whole[4] == whole[1]
    assert len(set(whole.tolist())) == 5
    assert np.array_equal(np.concatenate([hash_samples(images[:2]), hash_samples(images[2:].clone())]), whole)
    for kind in (torch.bfloat16, torch.float64, torch.int64, torch.bool):
        assert hash_samples(torch.zeros(2, 3, dtype=kind)).shape == (2,)


def test_a_pass_without_a_batch_has_no_predictions():
    tested = PredictionStore("scores")
    tested.gather(loader=None)
    with pytest.raises(ValueError, match="not exactly one prediction per sample"):
        tested.predictions()


def test_where_a_sample_has_several_predictions_there_are_none_of_the_split():
    tested = PredictionStore("scores")
    tested.append(torch.zeros(2, 4), torch.zeros(2, 3, 5), torch.zeros(2, 5, dtype=torch.long))
    tested.gather(loader=None)
    with pytest.raises(ValueError, match="not exactly one prediction per sample"):
        tested.predictions()


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("samples", [3, 10, 11, 12])
def test_the_parts_of_the_ranks_make_up_the_whole(ranks: int, samples: int):
    whole = np.arange(2 * samples).reshape(samples, 2)
    assert np.array_equal(interleave_ranks([whole[rank::ranks] for rank in range(ranks)]), whole)
    padded = np.concatenate([whole, whole[: -samples % ranks]])
    assert np.array_equal(interleave_ranks([padded[rank::ranks] for rank in range(ranks)], samples), whole)


def test_ranks_that_had_the_same_samples_have_no_order():
    with pytest.raises(ValueError, match="2 ranks tested 12 samples, but the split has 6"):
        interleave_ranks([np.arange(6), np.arange(6)], num_samples=6)


def test_the_parts_of_ranks_that_shared_batches_stay_whole():
    whole = interleave_ranks([np.arange(11), np.arange(8)])
    assert sorted(whole) == sorted([*range(11), *range(8)])
