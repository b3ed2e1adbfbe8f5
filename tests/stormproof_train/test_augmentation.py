"""Augmentations: what each does to a batch, and what it refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from stormproof_train.augmentation import (
    Compose,
    crop_flip,
    cutmix,
    erasing,
    mixup,
    no_augmentation,
    resized_crop,
    signal,
)

IMAGE, SEQUENCE = (3, 8, 6), (2, 20)
LABELS = torch.tensor([0, 1, 2, 3] * 4)


def _images(count: int = 16) -> torch.Tensor:
    return torch.randn(count, *IMAGE)


def test_a_crop_is_the_image_moved_with_its_border_repeated():
    images = _images()
    changed, target = crop_flip(IMAGE, padding=2, flip=0.0)(images, LABELS)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="replicate")
    offsets = []
    for before, after in zip(padded, changed, strict=True):
        places = [(y, x) for y in range(5) for x in range(5) if torch.equal(before[:, y : y + 8, x : x + 6], after)]
        offsets += places[:1]
    assert len(offsets) == len(images)
    assert len(set(offsets)) > 5  # each image has its own
    assert torch.equal(target, LABELS)


def test_a_flip_mirrors_left_to_right():
    images = _images()
    assert torch.equal(crop_flip(IMAGE, padding=0, flip=1.0)(images, LABELS)[0], images.flip(3))
    half = crop_flip(IMAGE, padding=0)(images, LABELS)[0]
    mirrored = [torch.equal(after, before.flip(2)) for before, after in zip(images, half, strict=True)]
    is_same = [torch.equal(after, before) for before, after in zip(images, half, strict=True)]
    assert sum(mirrored) + sum(is_same) == 16
    assert 0 < sum(mirrored) < 16


def test_a_resized_crop_of_everything_is_the_image_and_of_less_is_a_part():
    images = torch.linspace(-1, 1, 6).expand(16, *IMAGE)
    changed, _ = resized_crop(IMAGE, smallest=0.1, flip=0.0)(images, LABELS)
    assert changed.shape == images.shape
    assert changed.min() >= -1
    assert changed.max() <= 1
    widths = (changed.amax(3) - changed.amin(3)).mean(dim=(1, 2))
    assert widths.min() < 0.8 * 2
    assert len(widths.unique()) > 3


def test_erasing_leaves_a_rectangle_of_zeros():
    images = _images() + 10
    changed, _ = erasing(IMAGE, probability=1.0)(images, LABELS)
    erased = changed == 0
    assert torch.equal(changed[~erased], images[~erased])
    assert (erased.sum(dim=(1, 2, 3)) > 0).all()
    for image in erased[:, 0]:
        rows, columns = image.any(1).sum(), image.any(0).sum()
        assert image.sum() == rows * columns
    never, _ = erasing(IMAGE, probability=0.0)(images, LABELS)
    assert torch.equal(never, images)


def test_a_signal_is_rolled():
    sequences = torch.randn(16, *SEQUENCE)
    changed, _ = signal(SEQUENCE, scale=0.0, slope=0.0, noise=0.0)(sequences, LABELS)
    moves = []
    for before, after in zip(sequences, changed, strict=True):
        moves += [by for by in range(20) if torch.equal(before.roll(by, dims=1), after)][:1]
    assert len(moves) == 16
    assert len(set(moves)) > 5


def test_a_signal_is_scaled_tilted_and_blurred_by_as_much_as_was_asked_for():
    sequences = torch.randn(4000, *SEQUENCE)
    scaled = signal(SEQUENCE, scale=0.2, slope=0.0, noise=0.0, roll=False)(sequences, LABELS)[0] / sequences
    assert scaled.std(dim=(1, 2)).max() < 1e-4
    assert scaled.min().item() == pytest.approx(0.8, abs=0.01)
    assert scaled.max().item() == pytest.approx(1.2, abs=0.01)
    tilted = signal(SEQUENCE, scale=0.0, slope=0.5, noise=0.0, roll=False)(sequences, LABELS)[0] - sequences
    assert tilted.diff(n=2).abs().max() < 1e-5  # a straight line
    assert tilted[:, :, -1].abs().max().item() == pytest.approx(0.5, abs=0.01)
    noisy = signal(SEQUENCE, scale=0.0, slope=0.0, noise=0.3, roll=False)(sequences, LABELS)[0] - sequences
    assert noisy.std().item() == pytest.approx(0.3, rel=0.02)
    assert noisy.mean().abs() < 0.01


@pytest.mark.parametrize("shape", [IMAGE, SEQUENCE, (7,)])
def test_mixup_mixes_samples_and_classes_by_the_same_share(shape: tuple[int, ...]):
    inputs, labels = torch.randn(16, *shape), torch.arange(16)
    for _ in range(20):
        mixed, target = mixup(num_classes=16, alpha=1.0)(inputs, labels)
        assert target.sum(dim=1).allclose(torch.ones(16))
        expected = (target @ inputs.flatten(1)).reshape(inputs.shape)
        torch.testing.assert_close(mixed, expected)


def test_cutmix_puts_in_a_rectangle_and_mixes_classes_by_its_area():
    inputs, labels = _images(), torch.arange(16)
    for _ in range(20):
        mixed, target = cutmix(IMAGE, num_classes=16)(inputs, labels)
        kept_fraction = (mixed == inputs).all(dim=1).float().mean(dim=(1, 2))
        shares = target.gather(1, labels.unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(kept_fraction, shares)


def test_augmentations_follow_one_another():
    images, labels = _images(), torch.arange(16)
    both = Compose({"first": crop_flip(IMAGE, padding=0, flip=1.0), "second": mixup(num_classes=16, alpha=1.0)})
    mixed, target = both(images, labels)
    torch.testing.assert_close(mixed, (target @ images.flip(3).flatten(1)).reshape(images.shape))
    assert torch.equal(Compose({})(images, labels)[0], images)
    assert torch.equal(no_augmentation(images, labels)[1], labels)


@pytest.mark.parametrize(
    "make",
    [
        lambda: crop_flip(IMAGE),
        lambda: resized_crop(IMAGE),
        lambda: erasing(IMAGE, probability=1.0),
        lambda: mixup(4),
        lambda: cutmix(IMAGE, 4),
    ],
    ids=["crop_flip", "resized_crop", "erasing", "mixup", "cutmix"],
)
def test_what_is_drawn_comes_from_torchs_generator_alone(make: Callable[[], Any]):
    augmentation, images = make(), _images()
    torch.manual_seed(3)
    first = augmentation(images, LABELS)
    torch.manual_seed(3)
    repeated = augmentation(images, LABELS)
    assert torch.equal(first[0], repeated[0])
    assert torch.equal(first[1], repeated[1])
    assert not torch.equal(augmentation(images, LABELS)[0], first[0])


REFUSED = {
    "a crop of a table": (lambda: crop_flip((7,)), r"crop_flip needs images .*, got samples of shape \(7,\)"),
    "a negative padding": (lambda: crop_flip(IMAGE, padding=-1), "`padding` must be at least 0 pixels, got -1"),
    "a flip beyond certainty": (lambda: crop_flip(IMAGE, flip=1.5), r"`flip` must be in \[0, 1\], got 1\.5"),
    "a part of nothing": (lambda: resized_crop(IMAGE, smallest=0.0), r"`smallest` must be in \(0, 1\], got 0\.0"),
    "a sequence resized": (lambda: resized_crop(SEQUENCE), "resized_crop needs images"),
    "a sequence erased": (lambda: erasing(SEQUENCE), "erasing needs images"),
    "an image as a signal": (lambda: signal(IMAGE), r"signal needs sequences \(channels, length\)"),
    "a scale above 1": (lambda: signal(SEQUENCE, scale=1.5), r"`scale` must be in \[0, 1\], .* got scale=1\.5"),
    "a negative slope": (
        lambda: signal(SEQUENCE, slope=-1.0),
        r"at least 0, got scale=0\.2, slope=-1\.0 and noise=0\.05",
    ),
    "numbers mixed": (lambda: mixup(None), "mixup mixes classes, but the task of this data is regression"),
    "numbers cut": (lambda: cutmix(IMAGE, None), "cutmix mixes classes"),
    "an alpha of nothing": (lambda: mixup(3, alpha=0.0), r"`alpha` must be above 0, got 0\.0"),
    "sequences cut": (lambda: cutmix(SEQUENCE, 3), "cutmix needs images"),
}


@pytest.mark.parametrize(("make", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_one_sentence(make: Callable[[], Any], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        make()
