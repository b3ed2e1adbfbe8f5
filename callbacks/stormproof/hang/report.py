"""Reports the state of a hanging process: thread stacks, last collectives and child processes."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from traceback import FrameSummary
from typing import Any

import psutil
from torch import _C

from stormproof.checkpoint.background_thread import BackgroundJob
from stormproof.hang.process_activity import descendants
from stormproof.hang.thread_frames import current_frames

REPORTING_THREAD_PREFIX = "hang-"
"""Prefix of the names of threads that write reports. Reports omit these threads."""
MAX_COLLECTIVES = 5
FLIGHT_RECORDER_TIMEOUT = 2.0
"""Maximum wait for torch's flight recorder, in seconds. It queries the GPU, which may be the cause of the hang."""
_WAIT_KINDS = {  # by part of a file name in the stack
    "torch/distributed/": "in a collective",
    "torch/nn/parallel/distributed": "in a collective",
    "torch/autograd/": "in backward",  # where gradients are reduced over the ranks
    "torch/utils/data/": "waiting for the data loader",
}
_WAIT_PRIMITIVES = ("/threading.py", "/queue.py", "/selectors.py", "/multiprocessing/", "/concurrent/futures/")


def describe_wait(stack: list[FrameSummary], collective: str | None = None) -> str:
    """Describes where a thread waits: the kind of wait and the innermost line outside Python's waiting primitives.

    Args:
        stack: Frames of the thread, outermost first.
        collective: Name of a collective that has not completed. None if all have completed.

    Example:
        >>> describe_wait([
        ...     FrameSummary("mine.py", 3, "main"),
        ...     FrameSummary("site-packages/torch/utils/data/dataloader.py", 1327, "_try_get_data"),
        ...     FrameSummary("lib/python3.11/queue.py", 180, "get"),
        ... ])
        'waiting for the data loader, in _try_get_data (site-packages/torch/utils/data/dataloader.py:1327)'
    """
    if not stack:
        return "the training thread has ended"
    file_frames = [(frame.filename.replace("\\", "/"), frame) for frame in reversed(stack)]
    wait_kinds = (kind for name, _ in file_frames for part, kind in _WAIT_KINDS.items() if part in name)
    name, frame = next(
        (file_frame for file_frame in file_frames if not any(part in file_frame[0] for part in _WAIT_PRIMITIVES)),
        file_frames[0],
    )
    location = f"in {frame.name} ({'/'.join(name.split('/')[-5:])}:{frame.lineno})"
    collective_notes = [] if collective is None else [f"{collective} not completed"]
    return ", ".join([*list(wait_kinds)[:1], location, *collective_notes])


def thread_stack(thread: int) -> list[FrameSummary]:
    """Returns the stack of a thread, outermost frame first. Empty if the thread has ended.

    Args:
        thread: Identifier of the thread, as returned by ``threading.get_ident``.
    """
    frame = current_frames().get(thread)
    return [] if frame is None else list(traceback.extract_stack(frame))


def format_report(training_thread: int, collectives: list[dict[str, Any]] | None) -> str:
    """Returns the text of a report about this process.

    Args:
        training_thread: Identifier of the training thread.
        collectives: Result of :func:`last_collectives`.
    """
    process = f"process {os.getpid()} on {socket.gethostname()}, {time.strftime('%Y-%m-%d %H:%M:%S %z')}"
    parts = [process, _format_threads(training_thread), _format_collectives(collectives), _format_children()]
    return "\n\n".join(part for part in parts if part) + "\n"


def last_collectives() -> list[dict[str, Any]] | None:
    """Returns the last collectives of this process, newest last, from torch's flight recorder.

    The flight recorder is a ring buffer for NCCL and, in newer releases of torch, for gloo.

    Returns:
        Entries of the flight recorder. None if it does not answer within :data:`FLIGHT_RECORDER_TIMEOUT`.

    References:
        https://docs.pytorch.org/tutorials/unstable/flight_recorder_tutorial.html
    """
    results: list[list[dict[str, Any]]] = []
    job = BackgroundJob(lambda: results.append(_dump_flight_recorder()), "hang-flight-recorder")
    if wait([job], FLIGHT_RECORDER_TIMEOUT).not_done or not results:
        return None
    return results[0]


def pending_collective(collectives: list[dict[str, Any]] | None) -> str | None:
    """Returns the name of the oldest collective that has not completed, or None.

    Example:
        >>> pending_collective([{"profiling_name": "gloo:barrier", "state": "scheduled", "retired": False}])
        'gloo:barrier'
    """
    return next(
        (collective["profiling_name"] for collective in collectives or [] if not _is_completed(collective)), None
    )


def _is_completed(collective: dict[str, Any]) -> bool:
    return collective["state"] == "completed" or collective["retired"]


def _format_collectives(collectives: list[dict[str, Any]] | None) -> str:
    if collectives is None:
        return "last collectives: unknown, because torch's flight recorder did not answer"
    if not collectives:
        return ""
    now = time.time_ns()
    lines = [
        f"  {collective['profiling_name']}, number {collective['collective_seq_id']} in group "
        f"{collective['process_group'][-1]}, "
        f"sizes {collective['input_sizes']}: started {(now - collective['time_created_ns']) / 1e9:.0f} s ago, "
        f"{'completed' if _is_completed(collective) else 'NOT completed'}"
        for collective in reversed(collectives[-MAX_COLLECTIVES:])
    ]
    return "\n".join(["last collectives, newest first:", *lines])


def _dump_flight_recorder() -> list[dict[str, Any]]:
    """Returns the entries of torch's flight recorder."""
    distributed = getattr(_C, "_distributed_c10d", None)  # missing in builds of torch without distributed
    for name in ("_dump_nccl_trace_json", "_dump_fr_trace_json"):  # the first requires a build with NCCL
        dump: Callable[[bool, bool], bytes] | None = getattr(distributed, name, None)
        entries = [] if dump is None else json.loads(dump(True, False)).get("entries", [])
        if entries:
            return entries
    return []


def _format_threads(training_thread: int) -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    reporting_threads = {ident for ident, name in names.items() if name.startswith(REPORTING_THREAD_PREFIX)}
    other_threads = sorted(set(current_frames()) - reporting_threads - {training_thread})
    parts = [
        (
            f"training thread ({names.get(training_thread, training_thread)}), innermost call last:\n"
            f"{_format_stack(training_thread)}"
        )
    ]
    parts += [f"thread {names.get(thread_id, thread_id)}:\n{_format_stack(thread_id)}" for thread_id in other_threads]
    return "\n".join(parts).rstrip()


def _format_stack(thread: int) -> str:
    return "".join(traceback.format_list(thread_stack(thread)))


def _format_children() -> str:
    lines = list(_child_lines())
    return "\n".join(["child processes:", *lines]) if lines else ""


def _child_lines() -> Iterator[str]:
    """Yields one line per child process."""
    for process in descendants(psutil.Process()):
        try:
            cpu = process.cpu_times()
            wchan = Path(f"/proc/{process.pid}/wchan")
            location = f", in kernel function {wchan.read_text()}" if wchan.exists() else ""
            cpu_seconds = cpu.user + cpu.system
            yield f"  {process.pid} {process.name()}: {process.status()}{location}, {cpu_seconds:.1f} s of CPU time"
        except (psutil.Error, OSError):  # the process may have ended
            continue
