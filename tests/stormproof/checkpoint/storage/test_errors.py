"""Errors of an object store are one sentence with the value and the way out."""

import errno
import socket
import sys

import pytest

from stormproof.checkpoint import Store
from stormproof.checkpoint.storage import ObjectStorage
from stormproof.checkpoint.storage.object_store import MissingExtraError
from tests.support.checkpoint_files import commit_checkpoint
from tests.support.fault_proxy import FaultProxy
from tests.support.object_stores import S3Server

NAMES = ("", "/credential-net", "/skip-connection", "/timeout-403-SlowDown-NoSuchBucket")
"""Names of runs, some of which contain words of error messages."""


def _fail(url: str) -> OSError:
    with pytest.raises(OSError) as caught:  # noqa: PT011 (its fields are compared)
        Store(ObjectStorage(url, retry_seconds=0.2)).resolve()
    return caught.value


@pytest.mark.usefixtures("s3_server")
def test_a_missing_bucket(s3_url: str):
    error = _fail("s3://missing-bucket/run")
    assert (error.errno, error.filename) == (errno.ENXIO, "s3://missing-bucket/run")
    assert error.strerror == "the bucket does not exist; create it or correct the URL"
    store = Store(ObjectStorage("s3://missing-bucket/run", retry_seconds=0.2))
    with pytest.raises(OSError, match="the bucket does not exist"):
        commit_checkpoint(store, 10)
    for operation in (lambda: store.storage.put_if_absent("a", b""), lambda: list(store.storage.get("a"))):
        with pytest.raises(OSError, match="the bucket does not exist"):
            operation()


@pytest.mark.parametrize("name", NAMES)
def test_denied_credentials(name: str, s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch):
    url = s3_url + name
    with FaultProxy(s3_server.port, lambda method, path, number: "deny") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        error = _fail(url)
    assert (error.errno, error.filename) == (errno.EACCES, url)
    assert error.strerror.startswith("the credentials are missing or rejected; set them in the environment")


@pytest.mark.usefixtures("s3_server")
@pytest.mark.parametrize("name", NAMES)
def test_no_network(name: str, s3_url: str, monkeypatch: pytest.MonkeyPatch):
    url = s3_url + name
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        error = _fail(url)
    assert (error.errno, error.filename) == (errno.EHOSTUNREACH, url)
    assert error.strerror.startswith("the object store cannot be reached; check the network, the URL and the endpoint")


def test_an_overloaded_server(s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch):
    with FaultProxy(s3_server.port, lambda method, path, number: "slow down") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        error = _fail(s3_url)
    assert (error.errno, error.strerror) == (errno.EBUSY, "the object store is overloaded; try again later")


def test_the_extra_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingExtraError) as caught:
        ObjectStorage("s3://bucket/run")
    assert str(caught.value) == (
        "s3://bucket/run requires the extra `remote`. In a checkout, run: pip install -e '.[remote]'. Otherwise: pip "
        "install 'stormproof[remote]'."
    )
    assert caught.value.exit_code == 2


@pytest.mark.slow
def test_a_folder_needs_no_extra():
    code = "import sys; sys.modules['obstore'] = None; import stormproof; stormproof.CheckpointRecovery('x')"
    import subprocess

    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=100).returncode == 0
