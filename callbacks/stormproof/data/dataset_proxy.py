"""Proxy that replaces a data set."""

from __future__ import annotations

from typing import Any


class DatasetProxy:
    """Forwards attribute access to ``wrapped``, except for attributes set with :meth:`_set_own_attribute`.

    A ``worker_init_fn`` can therefore use ``get_worker_info().dataset`` like the user's data set.

    Example:
        >>> from types import SimpleNamespace
        >>> dataset = SimpleNamespace(files=3)
        >>> DatasetProxy(dataset).files = 4
        >>> dataset.files, DatasetProxy(dataset).files
        (4, 4)
    """

    def __init__(self, wrapped: Any) -> None:
        self._set_own_attribute("wrapped", wrapped)

    def _set_own_attribute(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name == "wrapped" or name.startswith("__"):  # requested while unpickling and by Python itself
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.wrapped, name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
