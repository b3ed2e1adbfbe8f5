import enum
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, Subset, TensorDataset, default_collate, default_convert
from torch.utils.data._utils.collate import default_collate_fn_map
from torchvision import datasets, transforms
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

from stormproof.data import rng
from stormproof.data.deterministic_datasets import (
    _DATASETS,
    _TRANSFORMS,
    collates_deterministically,
    fetches_deterministically,
)
from tests.stormproof.data.torchvision_data import make_cifar, make_image_folder, make_mnist, make_transform

IMAGE = Image.effect_noise((8, 8), 50)
TENSOR = torch.arange(64, dtype=torch.uint8).view(1, 8, 8)
FLOATS = TENSOR / 255
KNOWN: list[tuple[Any, Any]] = [
    (transforms.CenterCrop(4), IMAGE),
    (transforms.Compose([transforms.ToTensor()]), IMAGE),
    (transforms.ConvertImageDtype(torch.float64), TENSOR),
    (transforms.FiveCrop(4), IMAGE),
    (transforms.Grayscale(), IMAGE),
    (transforms.LinearTransformation(torch.eye(64), torch.zeros(64)), FLOATS),
    (transforms.Normalize((0.1,), (0.3,)), FLOATS),
    (transforms.Pad(2), IMAGE),
    (transforms.PILToTensor(), IMAGE),
    (transforms.Resize((4, 4), transforms.InterpolationMode.NEAREST), IMAGE),
    (transforms.TenCrop(4), IMAGE),
    (transforms.ToPILImage(), TENSOR),
    (transforms.ToTensor(), IMAGE),
    (v2.CenterCrop(4), IMAGE),
    (v2.Compose([v2.Resize(4)]), IMAGE),
    (v2.ConvertImageDtype(torch.float64), TENSOR),
    (v2.FiveCrop(4), IMAGE),
    (v2.Grayscale(), IMAGE),
    (v2.Identity(), IMAGE),
    (v2.LinearTransformation(torch.eye(64), torch.zeros(64)), FLOATS),
    (v2.Normalize([0.1], [0.3]), FLOATS),
    (v2.Pad(2, fill={Image.Image: 3, "others": 0}), IMAGE),
    (v2.PILToTensor(), IMAGE),
    (v2.RGB(), IMAGE),
    (v2.Resize(4), IMAGE),
    (v2.TenCrop(4), IMAGE),
    (v2.ToDtype(torch.float32, scale=True), TENSOR),
    (v2.ToImage(), IMAGE),
    (v2.ToPILImage(), TENSOR),
    (v2.ToPureTensor(), TENSOR),
]


@pytest.mark.parametrize(
    ("transform", "image"),
    KNOWN,
    ids=[f"{type(transform).__module__}.{type(transform).__name__}" for transform, _ in KNOWN],
)
def test_a_known_transform_is_recognized_and_draws_nothing(transform: Any, image: Any):
    assert fetches_deterministically(make_mnist(transform))
    before = repr(rng.capture())
    transform(image)
    assert repr(rng.capture()) == before


def test_every_listed_name_exists_in_torchvision():
    assert {name for name in _DATASETS if not hasattr(datasets, name)} == set()
    assert {type(transform).__name__ for transform, _ in KNOWN} | {"StandardTransform"} == _TRANSFORMS


@pytest.mark.parametrize("name", sorted(_DATASETS))
def test_no_listed_data_set_overrides_how_torch_fetches_batches(name: str):
    assert not hasattr(getattr(datasets, name), "__getitems__")
    assert not hasattr(getattr(datasets, name), "draws_random_numbers")


def test_data_sets_are_recognized_with_lists_and_arrays_and_in_parts(tmp_path: Path):
    mnist, cifar = make_mnist(make_transform()), make_cifar(transforms.ToTensor())
    folder = make_image_folder(tmp_path / "images", make_transform(), loader=default_loader)
    assert fetches_deterministically(Subset(ConcatDataset([mnist, Subset(cifar, [1]), folder]), [0]))
    before = repr(rng.capture())
    assert [len(dataset[1]) for dataset in (mnist, cifar, folder)] == [2, 2, 2]
    assert repr(rng.capture()) == before


class Noise(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image + torch.rand(())


class NormalizeWithNoise(transforms.Normalize):
    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        return super().forward(tensor) + torch.rand(())


class NoisyMnist(datasets.MNIST):
    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)[0] + torch.rand(())


class Augmentation(enum.Enum):
    NOISE = 1

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return image + torch.rand(())


@functools.wraps(default_loader)
def load_with_noise(path: str) -> Any:
    return default_loader(path).rotate(int(torch.randint(90, ())))


@functools.wraps(transforms.ToTensor, updated=())
class Disguised(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image + torch.rand(())


def _make_hooked() -> Any:
    transform = v2.Normalize([0.5], [0.5])
    transform.register_forward_hook(lambda module, inputs, output: output + torch.rand(()))
    return transform


def _make_patched() -> Any:
    transform = v2.Normalize([0.5], [0.5])
    transform.transform = lambda image, params: image + torch.rand(())
    return transform


def _add(transform: Any) -> datasets.MNIST:
    dataset = make_mnist(make_transform())
    dataset.transform.transforms.append(transform)
    return dataset


def _make_cyclic() -> Any:
    transform = make_transform()
    transform.transforms[0].parent = transform
    transform.transforms.append(Noise())
    return transform


UNKNOWN: dict[str, Callable[[], Any]] = {
    "a list": lambda: [1, 2],
    "a module": lambda: make_mnist(Noise()),
    "a lambda": lambda: make_mnist(v2.Lambda(lambda image: image + torch.rand(()))),
    "a partial function": lambda: make_mnist(functools.partial(torch.add, other=1)),
    "a random transform": lambda: make_mnist(make_transform(v2.RandomHorizontalFlip())),
    "a random transform, added in place": lambda: _add(v2.RandomHorizontalFlip()),
    "a known transform applied at random": lambda: make_mnist(v2.RandomApply([v2.Resize(4)])),
    "known transforms in random order": lambda: make_mnist(transforms.RandomOrder([transforms.Resize(4)])),
    "a transform of targets": lambda: make_mnist(make_transform(), target_transform=lambda label: label),
    "a subclass of a transform": lambda: make_mnist(NormalizeWithNoise([0.5], [0.5])),
    "a subclass of a data set": lambda: make_mnist(make_transform(), kind=NoisyMnist),
    "a subclass of TensorDataset": lambda: type("Mine", (TensorDataset,), {})(torch.zeros(3)),
    "a hook": lambda: make_mnist(_make_hooked()),
    "a replaced method": lambda: make_mnist(_make_patched()),
    "a class with the name of another": lambda: make_mnist(Disguised()),
    "a callable enum": lambda: make_mnist(v2.Compose([Augmentation.NOISE])),
    "data of an unknown type": lambda: make_mnist(make_transform(), data=range(3)),
    "a cycle": lambda: make_mnist(_make_cyclic()),
    "part of several": lambda: ConcatDataset([make_mnist(make_transform()), make_mnist(Noise())]),
    "part of a subset": lambda: Subset(make_mnist(Noise()), [0]),
    "FakeData": lambda: datasets.FakeData(transform=transforms.ToTensor()),
}


@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_what_may_draw_is_not_recognized(make: Callable[[], Any]):
    assert not fetches_deterministically(make())


def test_a_function_that_reads_images_is_not_recognized_by_its_name(tmp_path: Path):
    assert load_with_noise.__qualname__ == default_loader.__qualname__
    assert not fetches_deterministically(make_image_folder(tmp_path, make_transform(), loader=load_with_noise))


def test_a_part_that_declares_itself_is_believed():
    silent, random = make_mnist(Noise(), draws_random_numbers=False), make_mnist(None, draws_random_numbers=True)
    assert fetches_deterministically(ConcatDataset([silent, TensorDataset(torch.zeros(2))]))
    assert not fetches_deterministically(ConcatDataset([silent, random]))


@pytest.fixture
def _registered_collate_function() -> Iterator[None]:
    default_collate_fn_map[Image.Image] = lambda batch, *, collate_fn_map: torch.rand(len(batch))
    yield
    del default_collate_fn_map[Image.Image]


@pytest.mark.usefixtures("_registered_collate_function")
def test_torchs_collate_function_may_draw_once_a_user_registered_a_type():
    assert not collates_deterministically(default_collate)


def test_only_torchs_own_collate_functions_are_recognized():
    class Unhashable:
        __hash__ = None  # pyright: ignore[reportAssignmentType]

        def __call__(self, batch: Any) -> Any:
            return batch

    assert [collates_deterministically(function) for function in (default_collate, default_convert)] == [True, True]
    assert [collates_deterministically(function) for function in (list, Unhashable())] == [False, False]
