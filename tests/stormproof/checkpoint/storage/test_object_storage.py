"""Large objects, prefixes and URLs of object stores."""

import os

import psutil
import pytest

from stormproof.checkpoint.storage import ObjectStorage
from stormproof.checkpoint.storage.object_store import PART_BYTES
from stormproof.checkpoint.storage.url import normalize_url
from tests.support.object_stores import overwrite


@pytest.mark.slow
def test_a_large_upload_appears_only_when_it_is_complete(s3_url: str):
    storage = ObjectStorage(s3_url)
    chunk = bytes(range(256)) * 4096

    def write(file: object) -> None:
        for _ in range(2 * PART_BYTES // len(chunk) + 1):
            file.write(chunk)  # type: ignore[attr-defined]
        assert storage.list() == []

    storage.put("large", write)
    (entry,) = storage.list()
    assert entry.size == 2 * PART_BYTES + len(chunk)
    assert (
        b"".join(storage.get("large", PART_BYTES - 5, PART_BYTES + 5)) == (chunk * 2)[-5 + len(chunk) : 5 + len(chunk)]
    )


@pytest.mark.drill
def test_an_upload_and_a_download_need_bounded_memory(s3_url: str):
    storage, process = ObjectStorage(s3_url), psutil.Process()
    chunk = os.urandom(1 << 20)
    start_bytes, peaks = process.memory_info().rss, []

    def write(file: object) -> None:
        for _ in range(384):
            file.write(chunk)  # type: ignore[attr-defined]
            peaks.append(process.memory_info().rss)

    storage.put("large", write)
    for _ in storage.get("large"):
        peaks.append(process.memory_info().rss)  # noqa: PERF401 (the memory at each chunk)
    assert max(peaks) - start_bytes < 200 << 20


def test_objects_of_other_prefixes_are_not_listed(s3_url: str):
    overwrite(ObjectStorage(f"{s3_url}-other"), "a", b"1")
    assert ObjectStorage(s3_url).list() == []


@pytest.mark.parametrize(
    ("url", "normalized"),
    [
        ("s3://bucket/run/", "s3://bucket/run"),
        ("s3://bucket", "s3://bucket"),
        ("s3a://bucket//run", "s3://bucket/run"),
        ("gcs://bucket/a/b", "gs://bucket/a/b"),
        ("az://container/run", "az://container/run"),
    ],
)
def test_urls_are_normalized(url: str, normalized: str):
    assert normalize_url(url) == normalized


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("hdfs://host/run", "hdfs://host/run is not the URL of a supported object store"),
        ("s3:/bucket/run", "s3:/bucket/run is not the URL"),
        ("s3:///run", "s3:///run has no valid bucket name. Write the URL as s3://bucket/prefix."),
        ("s3://bucket/a/../b", "has an invalid prefix"),
        ("s3://bucket/run?x=1", "has an invalid prefix"),
    ],
)
def test_a_bad_url_is_one_sentence_with_the_value_and_a_way_out(url: str, reason: str):
    with pytest.raises(ValueError, match=reason.replace("?", r"\?")):
        ObjectStorage(url)
