"""Distinguishes the user's code from installed packages."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stormproof.user_objects import read_attributes

_INSTALLED = tuple(
    f"{os.sep}{folder}{os.sep}" for folder in ("site-packages", "dist-packages", "stormproof" + os.sep + "replay")
)


class UserCode:
    """The code below the working folder, except installed packages.

    Args:
        root: Real path of the working folder.
    """

    def __init__(self, root: str) -> None:
        self._prefix = root + os.sep
        self._standard_library = os.path.realpath(sysconfig.get_path("stdlib")) + os.sep
        self._files: dict[str, bool] = {}
        self._classes: dict[type, bool] = {}
        self._hidden: dict[type, frozenset[str]] = {}
        self._modules: list[tuple[str, ModuleType]] = []
        self._module_count = 0

    def is_user_file(self, path: str) -> bool:
        """Returns whether a source file belongs to the user."""
        is_user = self._files.get(path)
        if is_user is None:
            real_path = os.path.realpath(path)
            is_user = (
                real_path.startswith(self._prefix)
                and not real_path.startswith(self._standard_library)
                and not any(folder in real_path for folder in _INSTALLED)
                and Path(real_path).exists()  # the file of `torch.ops` is a relative path
            )
            self._files[path] = is_user
        return is_user

    def is_user_class(self, class_: type) -> bool:
        """Returns whether a class is defined in the user's code."""
        is_user = self._classes.get(class_)
        if is_user is None:
            module = sys.modules.get(class_.__module__)
            path = read_attributes(module).get("__file__")
            is_user = self._classes[class_] = isinstance(path, str) and self.is_user_file(path)
        return is_user

    def list_modules(self) -> list[tuple[str, ModuleType]]:
        """Returns the imported modules of the user by name. The name of ``__main__`` is the name of its file."""
        if len(sys.modules) != self._module_count:
            self._module_count = len(sys.modules)
            self._modules = []
            for name, module in list(sys.modules.items()):
                path = read_attributes(module).get("__file__")
                if name != "__mp_main__" and isinstance(path, str) and self.is_user_file(path):
                    short = Path(path).stem if name == "__main__" else name
                    self._modules.append((short, module))
        return self._modules

    def list_framework_attributes(self, class_: type) -> frozenset[str]:
        """Returns the names of attributes that torch, Lightning and torchmetrics add to instances."""
        hidden = self._hidden.get(class_)
        if hidden is None:
            hidden = self._hidden[class_] = frozenset(_find_framework_attributes(class_))
        return hidden


def _find_framework_attributes(class_: type) -> set[str]:
    if issubclass(class_, DataLoader):
        return set(vars(DataLoader(TensorDataset(torch.empty(1)))))
    if not issubclass(class_, nn.Module):
        return set()
    names = set(vars(nn.Module()))
    for parent in class_.__mro__:
        if parent.__name__ == "LightningModule" and "lightning" in parent.__module__:
            module: Any = parent
            names |= set(vars(module()))
    return names | {"training"}
