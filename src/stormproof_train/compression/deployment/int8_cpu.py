"""Whether this machine computes fast with int8."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

_X86 = {"avx512_vnni", "avx_vnni", "amx_int8"}
_ARM = {"i8mm", "asimddp"}


def cpu_has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether the CPU multiplies and adds int8 in one instruction: VNNI or AMX on x86, dot products on ARM.

    Without it int8 gains little time, and on x86 needs ``reduce_range``, else products overflow.

    Args:
        cpuinfo: where Linux lists what the CPU can do.

    Returns:
        None where nobody knows, as on Windows.

    Example:
        >>> Path("cpuinfo").write_text("flags : fpu sse avx2 avx512_vnni") and cpu_has_vnni(Path("cpuinfo"))
        True
    """
    if sys.platform == "darwin":
        return True if platform.machine() == "arm64" else None  # each M processor has dot products; of Intel's few have
    try:
        lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    named = [line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features"))]
    return bool((_X86 | _ARM) & set(named[0])) if named else None


def int8_told(has: bool | None) -> str:
    """What :func:`cpu_has_vnni` found, for a sentence on the processor."""
    if has is None:
        return "whether it has instructions for int8 nobody knows"
    return "it has instructions for int8" if has else "it has none for int8, which gains little time there"
