"""Classifies exceptions of obstore, and describes them in one sentence."""

from __future__ import annotations

import errno
import re
from enum import Enum

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
_FAILING = "the object store reports an internal error or a conflict with another request; try again later"


class Answer(Enum):
    """Meaning of a failed request."""

    RETRY = "the request may succeed if it is repeated"
    CONDITION_FAILED = "the object exists, or has another version than expected"
    ABSENT = "the object or the bucket does not exist"
    REFUSED = "the request is denied or invalid"


_ANSWERS = (
    (r"NoSuchBucket|ContainerNotFound|bucket does not exist", Answer.ABSENT, errno.ENXIO, _NO_BUCKET),
    (_DENIED_PATTERN, Answer.REFUSED, errno.EACCES, _DENIED),
    (r"SlowDown|ServerBusy|status code: (503|429)", Answer.RETRY, errno.EBUSY, _OVERLOADED),
    # S3 and GCS: a concurrent request; Azure: a container that is being deleted, but also If-None-Match of a blob
    (r"status code: 409(?!.*BlobAlreadyExists)", Answer.RETRY, errno.EBUSY, _FAILING),
    (r"status code: (408|425|5(?!01))|RequestTimeout", Answer.RETRY, errno.EIO, _FAILING),
    (r"^(AlreadyExists|Precondition)Error", Answer.CONDITION_FAILED, errno.EIO, None),
    (r"^FileNotFoundError", Answer.ABSENT, errno.EIO, None),
    (r"^GenericError.*status code: (?!404)[45]", Answer.REFUSED, errno.EIO, None),  # 404: of a list, where it is wrong
    (r"error sending request|dns error|timed out|timeout|connection|Connect", Answer.RETRY, errno.EHOSTUNREACH,
     _UNREACHABLE),
    (r"^(Generic|OS|Join)Error", Answer.RETRY, errno.EIO, None),
    (r"", Answer.REFUSED, errno.EIO, None),
)  # fmt: skip
"""Pattern of an exception, its meaning, ``errno`` and reason. The first match counts.

Providers document which requests to repeat: S3 (409 ConditionalRequestConflict and OperationAborted, 500, 503), GCS
(408, 429, 5xx), Azure (500 OperationTimedOut, 503 ServerBusy), R2 and MinIO (like S3). A single 403, 404 or 412 may be
wrong, so that :class:`stormproof.checkpoint.storage.ObjectStorage` repeats these requests, too.
"""
_NAMES_PATTERN = re.compile(
    r"https?://\S+|<(Key|Resource|BucketName|Message)>.*?</\1>|Object at location \S+", re.DOTALL
)
"""Parts of an error message that contain names chosen by the user."""


def interpret_error(error: BaseException) -> tuple[Answer, int, str]:
    """Returns the meaning of an exception of obstore, a value of ``errno``, and one sentence."""
    message = str(error).partition("Debug source")[0]
    text = f"{type(error).__name__}: {_NAMES_PATTERN.sub('', message)}"
    answer, number, reason = next(row[1:] for row in _ANSWERS if re.search(row[0], text, re.DOTALL))
    return answer, number, reason or message.partition("\n")[0].strip()[:200] or type(error).__name__
