import dataclasses
import math
from pathlib import Path

import pytest

from stormproof.checkpoint.manifest import Checkpoint, LogPrefix, decode_manifest, encode_manifest
from stormproof.errors import NotResumableError
from tests.support.checkpoint_files import forge_manifest, make_checkpoint

LOG = LogPrefix.from_content(b"so far\n")


def _full_checkpoint(folder: Path) -> Checkpoint:
    return make_checkpoint(
        folder, 12, 600, epoch=3, world_size=2, attempt=4, digest="xxh3_128:" + "ab" * 16, bytes=1234, score=0.25,
        identity="1f", run="mine", versions={"torch": "2.13"}, healthy=True, time=1.5,
    )  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [{}, {"score": -1e300, "run": 'of "Ö"\n}\n', "healthy": False, "finite": False, "adopted": True}],
    ids=["plain", "odd"],
)
def test_what_was_encoded_is_decoded(fields: dict[str, object], tmp_path: Path):
    for checkpoint in (make_checkpoint(tmp_path, 1), _full_checkpoint(tmp_path)):
        expected = dataclasses.replace(checkpoint, **fields)
        assert decode_manifest(encode_manifest(expected, LOG), expected.path) == (expected, LOG)


def test_a_manifest_at_another_place_describes_the_file_there(tmp_path: Path):
    content = encode_manifest(_full_checkpoint(tmp_path / "here"), LOG)
    assert decode_manifest(content, _full_checkpoint(tmp_path / "there").path)[0] == _full_checkpoint(
        tmp_path / "there"
    )


def test_every_byte_that_is_flipped_is_found(tmp_path: Path):
    checkpoint = _full_checkpoint(tmp_path)
    content = encode_manifest(checkpoint, LOG)
    for offset in range(len(content)):
        for mask in (0x01, 0x20, 0x80, 0xFF):
            flipped = bytearray(content)
            flipped[offset] ^= mask
            with pytest.raises(ValueError, match="its manifest"):
                decode_manifest(bytes(flipped), checkpoint.path)


def test_every_cut_and_every_byte_too_many_is_found(tmp_path: Path):
    checkpoint = _full_checkpoint(tmp_path)
    content = encode_manifest(checkpoint, LOG)
    longer = [content + b"\n", content + b"\0", b" " + content, content * 2]
    for corrupted in [content[:length] for length in range(len(content))] + longer:
        with pytest.raises(ValueError, match="its manifest"):
            decode_manifest(corrupted, checkpoint.path)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"file": "../000012-step-600.ckpt"}, "belongs to another file"),
        ({"file": "/etc/passwd"}, "belongs to another file"),
        ({"file": "000013-step-600.ckpt"}, "belongs to another file"),
        ({"file": None}, "belongs to another file"),
        ({"sequence": 13}, "another sequence or step than its name"),
        ({"step": 601}, "another sequence or step than its name"),
        ({"format": 0}, "an invalid format, 0"),
        ({"format": "2"}, "an invalid format, '2'"),
        ({"format": True}, "an invalid format, True"),
        ({"digest": None}, "field digest"),
        ({"digest": ""}, "an invalid digest, ''"),
        ({"digest": "abc"}, "an invalid digest, 'abc'"),
        ({"format": 1, "sha256": None}, "an invalid digest, 'sha256:None'"),
        ({"bytes": True}, "field bytes"),
        ({"bytes": 1.0}, "field bytes"),
        ({"world_size": "2"}, "field world_size"),
        ({"finite": 1}, "field finite"),
        ({"finite": None}, "field finite"),
        ({"score": math.nan}, "field score"),
        ({"score": math.inf}, "field score"),
        ({"score": "low"}, "field score"),
        ({"versions": {"torch": 2}}, "field versions"),
        ({"log_bytes": None}, "field log_bytes"),
    ],
)
def test_a_forged_manifest_with_the_right_hash_is_not_believed(fields: dict[str, object], reason: str, tmp_path: Path):
    checkpoint = _full_checkpoint(tmp_path)
    assert decode_manifest(forge_manifest(checkpoint), checkpoint.path)[0] == checkpoint
    with pytest.raises(ValueError, match=reason):
        decode_manifest(forge_manifest(checkpoint, **fields), checkpoint.path)


def test_a_manifest_of_format_1_is_read(tmp_path: Path):
    checkpoint = _full_checkpoint(tmp_path)
    content = forge_manifest(checkpoint, format=1, digest=None, sha256="ab" * 32)
    expected = dataclasses.replace(checkpoint, digest=f"sha256:{'ab' * 32}")
    assert decode_manifest(content, checkpoint.path)[0] == expected


@pytest.mark.parametrize(
    ("fields", "feature"),
    [({"format": 4}, "format 4"), ({"digest": "xxh4:00"}, "the hash algorithm 'xxh4'")],
)
def test_a_manifest_of_a_later_version_asks_for_an_update(fields: dict[str, object], feature: str, tmp_path: Path):
    checkpoint = _full_checkpoint(tmp_path)
    with pytest.raises(NotResumableError, match=f"{feature}, which this version of stormproof does not support"):
        decode_manifest(forge_manifest(checkpoint, **fields), checkpoint.path)


def test_a_manifest_of_ten_megabytes_is_not_ours(tmp_path: Path):
    checkpoint = dataclasses.replace(_full_checkpoint(tmp_path), run="x" * 10_000_000)
    with pytest.raises(ValueError, match="not written by stormproof"):
        decode_manifest(encode_manifest(checkpoint, LOG), checkpoint.path)


@pytest.mark.parametrize(
    ("log", "fits"), [(b"so far\n", True), (b"so far\nand on\n", True), (b"so far", False), (b"So far\n", False)]
)
def test_a_mark_fits_a_log_that_only_grew(log: bytes, fits: bool):
    assert LOG.matches(log) is fits
