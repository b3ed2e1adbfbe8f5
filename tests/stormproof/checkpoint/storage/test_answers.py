"""A single answer of a server ends nothing: which requests are repeated, and how often."""

import http.server
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from stormproof.checkpoint.storage import ObjectStorage, OutcomeUnknownError
from stormproof.checkpoint.storage.conditions import check_conditions

Refuse = Callable[[str, int], tuple[int, str] | None]
"""Takes the method and the number of the request with this method, and returns the status and code of an error."""


class _Server(http.server.ThreadingHTTPServer):
    """Keeps objects in memory and supports conditional writes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.counts: Counter[str] = Counter()
        self.refuse: Refuse = lambda method, number: None
        self.applies_refused = False


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def _handle(self) -> None:
        body, server = self.rfile.read(int(self.headers.get("Content-Length") or 0)), self.server
        server.counts[self.command] += 1
        error = server.refuse(self.command, server.counts[self.command])
        result = (500, b"") if error and not server.applies_refused else self._execute(body)
        if error is not None:
            result = (error[0], f"<Error><Code>{error[1]}</Code></Error>".encode())
        self.send_response_only(result[0])
        self.send_header("ETag", _make_tag(server.objects.get(self.path, b"")))
        self.send_header("Last-Modified", "Wed, 02 Dec 2026 18:00:00 GMT")
        self.send_header("Content-Length", str(len(result[1])))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(result[1])

    do_GET = do_PUT = do_HEAD = do_POST = _handle  # noqa: N815 (named by http.server)

    def _execute(self, body: bytes) -> tuple[int, bytes]:
        objects, current = self.server.objects, self.server.objects.get(self.path)
        if self.command == "POST":  # deletion
            objects.clear()
            return 200, b"<DeleteResult></DeleteResult>"
        if self.command != "PUT":
            return (200, current) if current is not None else (404, b"<Error><Code>NoSuchKey</Code></Error>")
        is_created = self.headers["If-None-Match"] != "*" or current is None
        is_unchanged = self.headers["If-Match"] in {None, _make_tag(current or b"")}
        if not (is_created and is_unchanged):
            return 412, b"<Error><Code>PreconditionFailed</Code></Error>"
        objects[self.path] = body
        return 200, b""

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 (named by http.server)
        pass


def _make_tag(content: bytes) -> str:
    return f'"{content.hex()}"'


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def storage(server: _Server, monkeypatch: pytest.MonkeyPatch) -> ObjectStorage:
    environment = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
    for name, value in {**environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}.items():
        monkeypatch.setenv(name, value)
    return ObjectStorage("s3://bucket/run", retry_seconds=5)


ANSWERS = {
    "S3 ConditionalRequestConflict": (409, "ConditionalRequestConflict"),
    "S3 OperationAborted": (409, "OperationAborted"),
    "S3 SlowDown": (503, "SlowDown"),
    "S3 RequestTimeout": (400, "RequestTimeout"),
    "a wrong 412": (412, "PreconditionFailed"),
    "a transient 403": (403, "AccessDenied"),
    "a wrong 404": (404, "NoSuchKey"),
    "a bucket that is not visible yet": (404, "NoSuchBucket"),
    "GCS 408": (408, "RequestTimeout"),
    "GCS 429": (429, "rateLimitExceeded"),
    "GCS 500": (500, "backendError"),
    "Azure ServerBusy": (503, "ServerBusy"),
    "Azure OperationTimedOut": (500, "OperationTimedOut"),
    "Azure ContainerBeingDisabled": (409, "ContainerBeingDisabled"),
    "a proxy that is too early": (425, ""),
}


@pytest.mark.parametrize("applies_refused", [False, True], ids=["not executed", "executed"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_single_answer_of_each_kind_changes_no_result(
    answer: str, applies_refused: bool, server: _Server, storage: ObjectStorage
):
    server.refuse = lambda method, number: ANSWERS[answer] if number == 1 else None
    server.applies_refused = applies_refused
    assert storage.put_if_absent("claim", b"me")
    content, version = storage.read_with_version("claim")
    server.counts.clear()
    assert storage.compare_and_swap("claim", b"new", version) is not None
    server.counts.clear()
    storage.put("data", lambda file: file.write(b"content"))
    assert (content, storage.read("data"), storage.stat("data").size) == (b"me", b"content", 7)
    server.counts.clear()
    assert not storage.put_if_absent("claim", b"another")
    assert storage.compare_and_swap("claim", b"another", version) is None
    with pytest.raises(FileNotFoundError):
        storage.read("missing")
    assert storage.read("claim") == b"new"


@pytest.mark.parametrize("status", [409, 412, 403, 404])
def test_a_request_that_always_fails_is_an_error_and_not_a_failed_condition(
    status: int, server: _Server, storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(storage, "_retry_seconds", 0.1)
    server.refuse = lambda method, number: (status, "") if method == "PUT" else None
    with pytest.raises(OutcomeUnknownError):
        storage.put_if_absent("claim", b"me")
    with pytest.raises(OSError, match=r"\S"):
        storage.put("data", lambda file: file.write(b"content"))


def test_a_wrong_read_does_not_hide_the_own_content(server: _Server, storage: ObjectStorage):
    server.refuse = lambda method, number: (500, "") if (method, number) == ("PUT", 1) else None
    server.applies_refused = True
    read, reads = storage.read_with_version, []

    def flip_once(name: str) -> tuple[bytes, str]:
        content, version = read(name)
        reads.append(name)
        return (b"mE" if len(reads) == 1 else content), version

    storage.read_with_version = flip_once  # type: ignore[method-assign]
    assert storage.put_if_absent("claim", b"me")


@pytest.mark.slow
def test_one_wrong_answer_is_not_a_lack_of_conditional_writes(server: _Server, storage: ObjectStorage):
    server.refuse = lambda method, number: (412, "PreconditionFailed") if number == 1 else None
    check_conditions(storage)


def test_an_error_of_the_writer_is_not_repeated(storage: ObjectStorage):
    calls: list[object] = []

    def fail(file: object) -> None:
        calls.append(file)
        raise ValueError("from the caller")

    with pytest.raises(ValueError, match="from the caller"):
        storage.put("data", fail)
    assert len(calls) == 1
