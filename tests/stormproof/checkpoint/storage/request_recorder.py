"""Interrupts a program at each of its requests to an object store."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import obstore

from stormproof.checkpoint.storage import ObjectStorage

REQUESTS = ("put", "get", "head", "delete", "list_with_delimiter")


class KilledError(BaseException):
    """Stands for the end of the process. No request follows it."""


class Requests:
    """Counts the requests of ``storage`` and injects a failure.

    Args:
        storage: Storage whose requests are counted.
        limit: Number of requests after which each further request raises :class:`KilledError`. None for no limit.
        lost_response: Number of the request, from 1, that is executed and then fails as if its response were lost.
    """

    def __init__(self, storage: ObjectStorage, limit: int | None = None, lost_response: int | None = None) -> None:
        self.count = 0
        self.names: list[str] = []
        self._limit, self._lost_response = limit, lost_response
        functions = {name: self._wrap(name, getattr(obstore, name)) for name in REQUESTS}
        storage._imported_obstore = SimpleNamespace(
            **functions, open_writer=self._open_writer, exceptions=obstore.exceptions, store=obstore.store
        )

    def _wrap(self, name: str, function: Any) -> Any:
        def request(*arguments: Any, **options: Any) -> Any:
            if self._limit is not None and self.count >= self._limit:
                raise KilledError
            self.count += 1
            self.names.append(name)
            result = function(*arguments, **options)
            if self.count == self._lost_response:
                raise obstore.exceptions.GenericError("connection closed before message completed")
            return result

        return request

    def _open_writer(self, *arguments: Any, **options: Any) -> Any:
        writer = obstore.open_writer(*arguments, **options)
        return SimpleNamespace(write=writer.write, close=self._wrap("complete", writer.close), __exit__=lambda *_: None)
