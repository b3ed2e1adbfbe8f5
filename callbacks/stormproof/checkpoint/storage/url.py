"""Recognizes and normalizes the URLs of object stores."""

from __future__ import annotations

import re
from pathlib import Path

_URL_PATTERN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "azure": "az", "abfs": "abfs",
            "abfss": "abfss"}  # fmt: skip
"""Schemes as fsspec writes them, and the schemes that obstore reads."""


def is_url(address: Path | str) -> bool:
    """Returns whether ``address`` is a URL and not the path of a folder.

    Example:
        >>> is_url("s3://bucket/run"), is_url("runs/mine")
        (True, False)
    """
    return _URL_PATTERN.match(str(address)) is not None


def normalize_url(url: str) -> str:
    """Returns ``url`` without a trailing slash, with the scheme that obstore reads.

    Raises:
        ValueError: If the scheme is not supported or the URL has no bucket.

    Example:
        >>> normalize_url("gcs://bucket/run/")
        'gs://bucket/run'
    """
    scheme, separator, rest = url.partition("://")
    url = re.sub(r"//[^/@]*:[^/@]*@", "//***@", url)  # a message must not contain a password
    if not separator or scheme.lower() not in _SCHEMES:
        raise ValueError(
            f"{url} is not the URL of a supported object store. Use s3://, gs:// or az:// with a bucket, such as "
            "s3://bucket/run (a string, because Path removes a slash), or the path of a folder."
        )
    bucket, _, prefix = rest.partition("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9@._-]*", bucket):
        raise ValueError(f"{url} has no valid bucket name. Write the URL as {scheme}://bucket/prefix.")
    if re.search(r"[?#\x00-\x1f]", prefix) or {".", ".."} & set(prefix.split("/")):
        raise ValueError(
            f"{url} has an invalid prefix. Remove '?', '#', control characters and the path segments '.' and '..'."
        )
    parts = [part for part in prefix.split("/") if part]
    return "/".join([f"{_SCHEMES[scheme.lower()]}://{bucket}", *parts])
