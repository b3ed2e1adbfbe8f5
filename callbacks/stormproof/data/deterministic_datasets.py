"""Recognizes data sets of torch and torchvision that draw no random numbers."""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset, default_collate, default_convert
from torch.utils.data._utils.collate import default_collate_fn_map

_DATASETS = frozenset({
    "CIFAR10", "CIFAR100", "EMNIST", "FashionMNIST", "ImageFolder", "KMNIST", "MNIST", "QMNIST", "STL10", "SVHN",
    "USPS",
})  # fmt: skip
"""torchvision's data sets of small images. Fetching one takes so little time that seeds cost a large part of it."""
_TRANSFORMS = frozenset({
    "CenterCrop", "Compose", "ConvertImageDtype", "FiveCrop", "Grayscale", "Identity", "LinearTransformation",
    "Normalize", "Pad", "PILToTensor", "RGB", "Resize", "StandardTransform", "TenCrop", "ToDtype", "ToImage",
    "ToPILImage", "ToPureTensor", "ToTensor",
})  # fmt: skip
_TRANSFORM_MODULES = ("torchvision.transforms", "torchvision.transforms.v2", "torchvision.datasets.vision")
_PLAIN_TYPES = frozenset({NoneType, bool, int, float, str, torch.Tensor, torch.dtype, type(Path())})
_SEQUENCE_TYPES = frozenset({list, tuple, set})
_MAPPING_TYPES = frozenset({dict, OrderedDict})
_COLLATE_MODULE = default_collate.__module__


def collates_deterministically(collate_fn: Any) -> bool:
    """Returns whether ``collate_fn`` is torch's default, without functions that a user registered for more types."""
    return (collate_fn is default_collate or collate_fn is default_convert) and all(
        function.__module__ == _COLLATE_MODULE for function in default_collate_fn_map.values()
    )


def fetches_deterministically(dataset: Any) -> bool:
    """Returns whether fetching a sample of ``dataset`` certainly draws no random numbers.

    The attribute ``draws_random_numbers`` of a data set decides if it exists. Otherwise recognizes torch's
    TensorDataset and torchvision's data sets of small images, also in a Subset or ConcatDataset. All transforms must be
    torchvision's and deterministic. Subclasses, functions of the user, replaced methods and hooks may draw. Assumes
    that lists, dictionaries and arrays in a data set contain data only.

    The result is valid until an attribute changes.

    Example:
        >>> fetches_deterministically(ConcatDataset([TensorDataset(torch.zeros(3)), TensorDataset(torch.ones(2))]))
        True
        >>> fetches_deterministically([1, 2, 3])
        False
    """
    dataset_type = type(dataset)
    if dataset_type is Subset:
        return fetches_deterministically(dataset.dataset)
    if dataset_type is ConcatDataset:
        return all(map(fetches_deterministically, dataset.datasets))
    declared = getattr(dataset, "draws_random_numbers", None)
    if declared is not None:
        return not declared
    if dataset_type is TensorDataset:
        return True
    if not _is_from(dataset_type, _DATASETS, ("torchvision.datasets",)):
        return False
    data_types = {list, tuple, dict, getattr(sys.modules.get("numpy"), "ndarray", list)}
    return _is_deterministic([value for value in vars(dataset).values() if type(value) not in data_types])


def _is_deterministic(values: list[Any]) -> bool:
    """Returns whether all objects that are reachable from ``values`` are plain values or deterministic transforms."""
    remaining, visited = values, set[int]()
    folder_module = sys.modules.get("torchvision.datasets.folder")
    while remaining:
        value = remaining.pop()
        value_type = type(value)
        if value_type in _PLAIN_TYPES or id(value) in visited:
            continue
        visited.add(id(value))
        if value_type in _MAPPING_TYPES:
            remaining += value.values()
        elif value_type in _SEQUENCE_TYPES:
            remaining += value
        elif _is_from(value_type, _TRANSFORMS, _TRANSFORM_MODULES):
            remaining += vars(value).values()
        elif value is not getattr(folder_module, "default_loader", None) and not _is_from(
            value_type, {"InterpolationMode"}, _TRANSFORM_MODULES
        ):
            return False
    return True


def _is_from(value_type: type, names: frozenset[str] | set[str], modules: tuple[str, ...]) -> bool:
    """Returns whether ``value_type`` is one of the classes ``names`` of ``modules``. Imports none of them."""
    name = value_type.__name__
    return name in names and any(getattr(sys.modules.get(module), name, None) is value_type for module in modules)
