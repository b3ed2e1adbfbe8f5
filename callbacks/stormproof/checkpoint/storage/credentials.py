"""Options of obstore that depend on the environment."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

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
