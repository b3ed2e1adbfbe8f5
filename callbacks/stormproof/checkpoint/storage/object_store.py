"""Storage in an object store, by conditional requests."""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, TypeVar, cast
from urllib.parse import quote

from stormproof.checkpoint.storage.obstore_errors import Answer, interpret_error
from stormproof.checkpoint.storage.protocol import Entry, OutcomeUnknownError, StageCallback, Storage
from stormproof.checkpoint.storage.url import normalize_url
from stormproof.errors import StorageError, StormproofError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")
PART_BYTES = 32 << 20
"""Size of the parts of an upload. S3 allows 10,000 parts, which limits a checkpoint to 335 GB."""
MAX_CONCURRENT_PARTS = 4
"""Number of parts that are uploaded at the same time. An upload needs about this number plus 1 parts of memory."""
READ_BYTES = 16 << 20
"""Size of the ranges that are read. Each has its own timeout and retries."""
RETRY_SECONDS = 60.0
REQUEST_RETRY_SECONDS = 2.0
"""Maximum time for which obstore itself retries a request, in seconds, except uploads. Ctrl-C does not interrupt it."""
REQUEST_TIMEOUT_SECONDS = 120.0
_WRITE_BYTES = 8 << 20  # obstore copies what one call writes
_process_ids: set[int] = set()
"""Processes that made requests: this one, and those from which it was forked. Threads of obstore end in a fork."""
_FIRST_DELAY_SECONDS, _MAX_DELAY_SECONDS = 0.1, 5.0
REFUSED_RETRY_SECONDS, ABSENT_ANSWERS = 10.0, 3
"""Maximum time to repeat a request that is refused, in seconds, and number of answers that count as absence."""


class MissingExtraError(StormproofError):
    """The extra ``remote`` is not installed."""

    exit_code = 2


class ObjectStorage(Storage):
    """Storage in S3 and compatible stores, GCS and Azure.

    Requests are retried after server errors, timeouts and failed connections. Because a single answer may be wrong,
    they are also repeated if an object is absent or access is denied. If the response to a create or a swap is lost,
    or a condition fails, the object is read to find out whether the request succeeded.

    Args:
        url: ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``. Credentials come from the
            environment or from the provider's own files.
        retry_seconds: Maximum time to retry a failing request, in seconds. Must be at least 0.
        store: obstore's store to use in place of the one for ``url``. Created from ``url`` if None.

    Raises:
        ValueError: If the scheme of ``url`` is not supported, or ``url`` has no bucket.
        MissingExtraError: If the extra ``remote`` is not installed.

    Example:
        >>> from obstore.store import MemoryStore
        >>> storage = ObjectStorage("s3://bucket/run", store=MemoryStore())
        >>> storage.put_if_absent("note", b"first"), storage.put_if_absent("note", b"second")
        (True, False)
        >>> b"".join(storage.get("note"))
        b'first'
    """

    def __init__(self, url: str, *, retry_seconds: float = RETRY_SECONDS, store: ObjectStore | None = None) -> None:
        self._location = normalize_url(url)
        self._retry_seconds = retry_seconds
        self._imported_obstore = _import_obstore(self._location)
        self._store = store or self._open_store(min(retry_seconds, REQUEST_RETRY_SECONDS))
        self._upload_store = store or self._open_store(retry_seconds)

    def __deepcopy__(self, memo: object) -> ObjectStorage:
        """Returns this storage, which has no state that changes."""
        return self

    def __reduce__(self) -> tuple[Callable[..., ObjectStorage], tuple[()]]:
        """Pickles the URL. The copy reads the credentials of its own process, and does not keep ``store``."""
        return partial(ObjectStorage, self.location, retry_seconds=self._retry_seconds), ()

    @property
    def location(self) -> str:
        """URL of the prefix."""
        return self._location

    @property
    def _obstore(self) -> Any:
        """Module ``obstore``, for a request.

        Raises:
            StorageError: If a parent process made a request before this process was forked.
        """
        _process_ids.add(os.getpid())
        if _process_ids != {os.getpid()}:
            raise StorageError(
                f"{self.location} cannot be used in a process that was forked after its parent used an object store. "
                'Use strategy="ddp" or "ddp_spawn", and the start method "spawn".'
            )
        return self._imported_obstore

    def put(self, name: str, write: Callable[[BinaryIO], object], on_stage: StageCallback | None = None) -> None:
        """Uploads an object in parts. The object appears when the last request completes the upload."""
        retry = None
        while True:
            upload = _Upload(
                self._obstore.open_writer(
                    self._upload_store, name, buffer_size=PART_BYTES, max_concurrency=MAX_CONCURRENT_PARTS
                ),
                lambda error: self._raise(error, name),
            )
            try:
                return self._upload(name, write, upload, on_stage or _ignore_stage)
            except Exception:
                retry = retry or _Retry(self._retry_seconds, upload.time)
                if upload.failure is None or not retry.wait(interpret_error(upload.failure)[0]):
                    raise

    def put_if_absent(self, name: str, content: bytes, on_stage: StageCallback | None = None) -> bool:
        """Creates an object with ``If-None-Match: *``. Returns whether this call created it."""
        notify = on_stage or _ignore_stage
        notify("written")
        notify("synced")
        is_created = self._write_conditionally(name, content, "create", None) is not None
        if is_created:
            notify("renamed")
        return is_created

    def get(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yields the bytes from ``start`` to ``stop``, one ranged request per chunk."""
        position, end = start, stop
        while end is None or position < end:
            range_end = position + READ_BYTES if end is None else min(position + READ_BYTES, end)
            chunk, size = self._get_range(name, position, range_end)
            end = size if stop is None else min(stop, size)
            position += len(chunk)
            if not chunk:
                return
            yield chunk

    def list(self, folder: str = "") -> list[Entry]:
        """Returns the objects and common prefixes directly in ``folder``."""
        result = self._retry(lambda: self._obstore.list_with_delimiter(self._store, folder or None), folder)
        folders = [Entry(prefix.rpartition("/")[2], 0, "", 0.0, True) for prefix in result["common_prefixes"]]
        objects = result["objects"]
        if self.location.startswith("az://"):  # Azure omits the quotes around ETags only in list responses
            objects = [{**meta, "e_tag": '"' + meta["e_tag"].strip('"') + '"'} for meta in objects]
        return [*folders, *map(_describe, objects)]

    def delete(self, names: Iterable[str]) -> None:
        """Deletes objects in order, one request each."""
        for name in names:
            with suppress(FileNotFoundError):
                self._retry(partial(self._obstore.delete, self._store, name), name)

    def compare_and_swap(self, name: str, content: bytes, version: str | None) -> str | None:
        """Replaces an object with ``If-Match``. Returns its new version, or None if it has another version."""
        mode = "create" if version is None else json.loads(version)
        return self._write_conditionally(name, content, mode, version)

    def stat(self, name: str) -> Entry:
        """Returns the entry of an object.

        Raises:
            FileNotFoundError: If the object does not exist.
        """
        return _describe(self._retry(lambda: self._obstore.head(self._store, name), name))

    def read(self, name: str) -> bytes:
        """Returns the content of a small object."""
        return self.read_with_version(name)[0]

    def read_with_version(self, name: str) -> tuple[bytes, str]:
        """Returns the content of a small object and its version."""

        def read() -> tuple[bytes, str]:
            result = self._obstore.get(self._store, name)
            return bytes(result.bytes()), _encode_version(result.meta)

        return self._retry(read, name)

    def _write_conditionally(self, name: str, content: bytes, mode: Any, version: str | None) -> str | None:
        """Returns the version of the written object. None if the condition failed."""
        obstore, retry, has_conflict = self._obstore, _Retry(self._retry_seconds), False
        while True:
            try:
                return _encode_version(obstore.put(self._store, name, content, mode=mode, use_multipart=False))
            except Exception as error:  # noqa: BLE001 (obstore's exceptions have no common public base)
                answer, number, reason = interpret_error(error)
            stored_content, stored_version = (None, version) if answer is Answer.REFUSED else self._read_again(name)
            if stored_content == content:  # only this process writes this content
                return stored_version
            if has_conflict and stored_version != version:
                return None
            has_conflict = stored_version != version  # a single read may be wrong
            if not retry.wait(answer) and not has_conflict:
                raise OutcomeUnknownError(number, reason, self.locate(name))

    def _read_again(self, name: str) -> tuple[bytes | None, str | None]:
        """Returns the content and the version of an object after a failed write. None and None if it is absent."""
        try:
            return self.read_with_version(name)
        except FileNotFoundError:
            return None, None
        except OSError as error:
            raise OutcomeUnknownError(error.errno, error.strerror, self.locate(name)) from error

    def _upload(self, name: str, write: Callable[[BinaryIO], object], upload: _Upload, notify: StageCallback) -> None:
        try:
            write(cast("BinaryIO", upload))
            notify("written")
            notify("synced")
        except BaseException as error:
            with suppress(Exception):  # the parts are not visible, and a lifecycle rule removes them
                upload.writer.__exit__(type(error), error, error.__traceback__)
            raise
        try:
            upload.complete()
        except OSError:
            if not self._has_size(name, upload.length):  # the upload may be complete, and only the response lost
                raise
        notify("renamed")

    def _get_range(self, name: str, start: int, end: int) -> tuple[bytes, int]:
        """Returns bytes of an object, and its size."""

        def get() -> tuple[bytes, int]:
            try:
                result = self._obstore.get(self._store, name, options={"range": (start, end)})
                return bytes(result.bytes()), result.meta["size"]
            except self._obstore.exceptions.GenericError:
                size = self._obstore.head(self._store, name)["size"]
                if size <= start:  # an empty range is an error
                    return b"", size
                raise

        return self._retry(get, name)

    def _retry(self, request: Callable[[], T], name: str) -> T:
        """Returns the result of a request that may be repeated, such as a read. obstore does not retry a cut response.

        Raises:
            FileNotFoundError: If the object does not exist.
            OSError: If the request fails for longer than ``retry_seconds``, or permanently.
        """
        retry = _Retry(self._retry_seconds)
        while True:
            try:
                return request()
            except StormproofError:
                raise
            except Exception as error:
                answer, number, _ = interpret_error(error)
                if not retry.wait(answer):
                    if answer is Answer.ABSENT and number != errno.ENXIO:
                        raise FileNotFoundError(errno.ENOENT, "the object does not exist", self.locate(name)) from error
                    self._raise(error, name)

    def _has_size(self, name: str, size: int) -> bool:
        try:
            return self._obstore.head(self._store, name)["size"] == size
        except Exception:  # noqa: BLE001 (obstore's exceptions have no common public base)
            return False

    def _raise(self, error: BaseException, name: str) -> NoReturn:
        _, number, reason = interpret_error(error)
        location = self.locate(name) if name and number == errno.EIO else self.location
        raise OSError(number, reason, location) from None  # obstore's message is long

    def _open_store(self, retry_seconds: float) -> ObjectStore:
        scheme, _, path = self.location.partition("://")
        seconds = timedelta(seconds=retry_seconds)
        options, client_options = collect_options(self.location)
        try:
            return self._imported_obstore.store.from_url(
                f"{scheme}://{quote(path, safe='/@')}",  # obstore decodes it
                client_options={
                    "timeout": timedelta(seconds=REQUEST_TIMEOUT_SECONDS),
                    "connect_timeout": timedelta(seconds=5),
                    **client_options,
                },
                retry_config={
                    "max_retries": 1000,  # limited by the time
                    "retry_timeout": seconds,
                    "backoff": {
                        "init_backoff": timedelta(seconds=_FIRST_DELAY_SECONDS),
                        "max_backoff": timedelta(seconds=_MAX_DELAY_SECONDS),
                        "base": 2,
                    },
                },
                **options,
            )
        except Exception as error:  # noqa: BLE001 (obstore's exceptions have no common public base)
            self._raise(error, "")


class _Retry:
    """Decides whether to repeat a failed request, until ``seconds`` after ``start`` (by default, now)."""

    def __init__(self, seconds: float, start: float | None = None) -> None:
        self._seconds, self._start = seconds, time.monotonic() if start is None else start
        self._delay, self._absent_answers = _FIRST_DELAY_SECONDS, 0

    def wait(self, answer: Answer) -> bool:
        """Waits before the next try. Returns False if the request is not repeated."""
        self._absent_answers += answer is Answer.ABSENT
        seconds = min(self._seconds, REFUSED_RETRY_SECONDS) if answer is Answer.REFUSED else self._seconds
        if time.monotonic() > self._start + seconds or self._absent_answers >= ABSENT_ANSWERS:
            return False
        time.sleep(self._delay)
        self._delay = min(2 * self._delay, _MAX_DELAY_SECONDS)
        return True


class _Upload(io.RawIOBase):
    """Writes to obstore's writer in slices and translates its exceptions. ``time`` is the time of the last success."""

    def __init__(self, writer: Any, raise_error: Callable[[BaseException], NoReturn]) -> None:
        super().__init__()
        self.writer, self._raise_error = writer, raise_error
        self.length, self.time = 0, time.monotonic()
        self.failure: Exception | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _WRITE_BYTES):
            self._call(partial(self.writer.write, bytes(view[start : start + _WRITE_BYTES])))
        self.length += len(view)
        return len(view)

    def complete(self) -> None:
        self._call(self.writer.close)

    def flush(self) -> None:
        pass  # the parts are complete when the upload is

    def _call(self, function: Callable[[], object]) -> None:
        try:
            function()
        except Exception as error:  # noqa: BLE001 (obstore's exceptions have no common public base)
            self.failure = error
            self._raise_error(error)
        self.time = time.monotonic()


def _describe(meta: Mapping[str, Any]) -> Entry:
    name = meta["path"].rpartition("/")[2]
    return Entry(name, meta["size"], _encode_version(meta), meta["last_modified"].timestamp())


def _encode_version(meta: Any) -> str:
    return json.dumps({key: meta[key] for key in ("e_tag", "version") if meta.get(key) is not None})


def _import_obstore(url: str) -> Any:
    try:
        for name in ("obstore.exceptions", "obstore.store"):
            import_module(name)
        return import_module("obstore")
    except ImportError as error:
        raise MissingExtraError(
            f"{url} requires the extra `remote`. In a checkout, run: pip install -e '.[remote]'. Otherwise: pip "
            "install 'stormproof[remote]'."
        ) from error


def _ignore_stage(stage: str) -> None:
    pass


_ENDPOINT_NAMES = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""Variables that name an endpoint, by scheme."""


def collect_options(url: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the options of the store at ``url`` and the options of its HTTP client.

    obstore reads the environment, and files of Google Cloud, by itself. It does not read the files of the AWS command
    line, which boto3 reads if it is installed. A plain HTTP endpoint is allowed if the environment names one.
    """
    names = _ENDPOINT_NAMES.get(url.partition("://")[0], ())
    endpoint = next((os.environ[name] for name in names if os.environ.get(name)), "")
    options: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    is_s3 = url.startswith("s3://")
    if is_s3 and "AWS_ACCESS_KEY_ID" not in os.environ and _has_aws_files() and importlib.util.find_spec("boto3"):
        from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415 (imports boto3)

        options["credential_provider"] = Boto3CredentialProvider()
    return options, {"allow_http": True} if endpoint.startswith("http://") else {}


def _has_aws_files() -> bool:
    files = [os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
             os.environ.get("AWS_CONFIG_FILE", "~/.aws/config")]  # fmt: skip
    return any(Path(file).expanduser().is_file() for file in files)
