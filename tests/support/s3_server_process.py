"""Serves moto's S3 on a port of loopback, with one request at a time.

moto tests the condition of a write and executes the write in two steps. The lock makes them one step, as S3 documents.
"""

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

APPLICATION = DomainDispatcherApplication(create_backend_app)
LOCK = threading.Lock()


def serve_one_at_a_time(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    with LOCK:
        return list(APPLICATION(environ, start_response))


if __name__ == "__main__":
    make_server("127.0.0.1", int(sys.argv[1]), serve_one_at_a_time, threaded=True).serve_forever()
