"""Describes exceptions of obstore in one sentence."""

from __future__ import annotations

import errno
import re

_DENIED_PATTERN = (
    r"AccessDenied|Forbidden|PermissionDenied|Unauthenticated|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|"
    r"Missing AccessKeyId|credential|AuthenticationFailed|AuthorizationFailure|"
    r"Account must be specified|status code: 40[13]"
)
_DENIED = (
    "the credentials are missing or rejected; set them in the environment: AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
)
_UNREACHABLE = (
    "the object store cannot be reached; check the network, the URL and the endpoint, for example AWS_ENDPOINT_URL"
)
_NO_BUCKET = "the bucket does not exist; create it or correct the URL"
_OVERLOADED = "the object store is overloaded; try again later"
_REASONS = (
    (r"NoSuchBucket|ContainerNotFound|bucket does not exist", errno.ENXIO, _NO_BUCKET),
    (_DENIED_PATTERN, errno.EACCES, _DENIED),
    (r"SlowDown|status code: 503|status code: 429", errno.EBUSY, _OVERLOADED),
    (r"error sending request|dns error|timed out|timeout|connection|Connect", errno.EHOSTUNREACH, _UNREACHABLE),
)
_NAMES_PATTERN = re.compile(
    r"https?://\S+|<(Key|Resource|BucketName|Message)>.*?</\1>|Object at location \S+", re.DOTALL
)
"""Parts of an error message that contain names chosen by the user."""
PERMANENT_ERRNOS = {errno.ENXIO, errno.EACCES}
"""Values of ``errno`` of errors that a retry does not correct."""


def summarize_error(error: BaseException) -> tuple[int, str]:
    """Returns a value of ``errno`` and one sentence for an exception of obstore."""
    message = str(error).partition("Debug source")[0]
    text = f"{type(error).__name__}: {_NAMES_PATTERN.sub('', message)}"
    for pattern, number, reason in _REASONS:
        if re.search(pattern, text):
            return number, reason
    return errno.EIO, message.partition("\n")[0].strip()[:200] or type(error).__name__
