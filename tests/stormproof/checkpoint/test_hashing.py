import io

import pytest
import torch
import xxhash

from stormproof.checkpoint.hashing import HashingFile
from tests.support.checkpoint_files import make_state


@pytest.mark.parametrize(
    "pieces",
    [[], [b""], [b"abc"], [b"a", bytearray(b"bc"), memoryview(b"de")], [memoryview(b"abcdefgh").cast("I")]],
    ids=["nothing", "empty", "bytes", "kinds", "wide"],
)
def test_what_is_written_is_passed_on_hashed_and_counted(pieces: list[bytes]):
    inner = io.BytesIO()
    file = HashingFile(inner)
    for piece in pieces:
        assert file.write(piece) == len(bytes(piece))
    content = b"".join(bytes(piece) for piece in pieces)
    assert inner.getvalue() == content
    assert (file.length, file.digest) == (len(content), f"xxh3_128:{xxhash.xxh3_128(content).hexdigest()}")


def test_what_torch_saves_is_hashed_to_the_last_byte():
    inner = io.BytesIO()
    file = HashingFile(inner)
    torch.save(make_state(5), file)
    assert file.digest == f"xxh3_128:{xxhash.xxh3_128(inner.getvalue()).hexdigest()}"
    inner.seek(0)
    assert torch.equal(
        torch.load(inner, weights_only=True)["state_dict"]["weight"], make_state(5)["state_dict"]["weight"]
    )


def test_no_byte_gets_past_the_hash():
    file = HashingFile(io.BytesIO())
    assert file.writable()
    assert not file.seekable()
    with pytest.raises(OSError, match="fileno"):
        file.fileno()


def test_the_first_bytes_are_told_once_they_are_out():
    inner = io.BytesIO()
    buffered = io.BufferedWriter(inner)  # type: ignore[arg-type]
    first_bytes = []
    file = HashingFile(buffered, lambda: first_bytes.append(inner.getvalue()))
    file.write(b"")
    assert first_bytes == []
    file.write(b"abc")
    file.write(b"def")
    assert first_bytes == [b"abc"]


class _Full(io.RawIOBase):
    def write(self, data: object) -> int:
        raise OSError(28, "No space left on device")


def test_an_error_of_the_disk_is_kept_for_whoever_hides_it():
    file = HashingFile(_Full())  # type: ignore[arg-type]
    assert file.failure is None
    with pytest.raises(OSError, match="No space left"):
        file.write(b"abc")
    assert file.failure is not None
    assert (file.failure.errno, file.length) == (28, 0)
