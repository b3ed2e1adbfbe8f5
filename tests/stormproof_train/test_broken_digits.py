"""The digits that the experiments in conf/experiment/broken are broken by."""

import pytest
import torch
from sklearn.datasets import load_digits

from stormproof_train.data.digits import Digits
from stormproof_train.examples.digits_with_gaps import DigitsWithGaps
from stormproof_train.examples.misaligned_digits import MisalignedDigits
from tests.support.split_arrays import load_splits


@pytest.mark.parametrize("fill_gaps", [False, True])
def test_one_scan_in_a_hundred_lacks_a_row_whenever_it_is_fetched(fill_gaps: bool):
    whole = load_splits(Digits(seed=3))
    for name, (scans, labels) in load_splits(DigitsWithGaps(fill_gaps, seed=3)).items():
        differ = (scans != whole[name][0]).flatten(1).any(1)
        assert differ.sum() == len(scans) // 100
        assert torch.equal(labels, whole[name][1])
        gaps = scans[differ][:, :, 3]
        assert bool((gaps == 0 if fill_gaps else gaps.isnan()).all())
        assert bool(scans[differ][:, :, torch.arange(8) != 3].isfinite().all())


def test_a_gap_is_in_no_split_that_is_looked_at_as_a_whole_and_in_single_scans():
    data = DigitsWithGaps(batch_size=1)
    data.setup("fit")
    (scans, _), _ = data.load()
    samples = data.build_dataset((scans, torch.zeros(len(scans))))
    assert [int(samples[row][0].isnan().sum()) for row in (98, 99, 100)] == [0, 8, 0]
    assert bool(scans.isfinite().all())


def test_files_sorted_as_text_have_the_labels_of_others():
    pixels, labels = load_digits(return_X_y=True)
    true_labels = {scan.tobytes(): label for scan, label in zip(pixels.astype("float32"), labels, strict=True)}
    shares = {}
    for sorted_as in ("text", "number"):
        data = MisalignedDigits(sorted_as)
        mean, std = data._mean_std
        scans, given_labels = (torch.cat(parts) for parts in zip(*load_splits(data).values(), strict=True))
        rows = (scans.flatten(1) * std + mean).round()
        shares[sorted_as] = sum(
            true_labels[row.numpy().tobytes()] == label for row, label in zip(rows, given_labels, strict=True)
        )
    assert shares["number"] == 1797
    assert shares["text"] < 0.15 * 1797
