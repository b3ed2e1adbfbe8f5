"""Detects fast int8 instructions of the CPU."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

_X86_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8"}
_ARM_FLAGS = {"i8mm", "asimddp"}


def cpu_has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Detects instructions that multiply and add int8: VNNI or AMX on x86, dot products on ARM.

    Without them, int8 is hardly faster, and needs ``reduce_range`` on x86 to avoid overflow.

    Args:
        cpuinfo: File in which Linux lists the CPU features.

    Returns:
        None if unknown, as on Windows.

    Example:
        >>> Path("cpuinfo").write_text("flags : fpu sse avx2 avx512_vnni") and cpu_has_vnni(Path("cpuinfo"))
        True
    """
    if sys.platform == "darwin":
        return True if platform.machine() == "arm64" else None  # all M processors have them, only a few Intel Macs do
    try:
        lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    flag_lists = [line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features"))]
    return bool((_X86_FLAGS | _ARM_FLAGS) & set(flag_lists[0])) if flag_lists else None


def describe_int8_support(has_int8: bool | None) -> str:
    """Describes the result of :func:`cpu_has_vnni`, after the name of the processor."""
    if has_int8 is None:
        return "support for int8 instructions is unknown"
    return "it has int8 instructions" if has_int8 else "it has no int8 instructions, so int8 is hardly faster"
