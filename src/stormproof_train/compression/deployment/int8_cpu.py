"""Whether this machine computes fast with int8."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

_X86_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8"}
_ARM_FLAGS = {"i8mm", "asimddp"}


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
    flag_lists = [line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features"))]
    return bool((_X86_FLAGS | _ARM_FLAGS) & set(flag_lists[0])) if flag_lists else None


def describe_int8_support(has_int8: bool | None) -> str:
    """What :func:`cpu_has_vnni` found, for a sentence on the processor."""
    if has_int8 is None:
        return "whether it has instructions for int8 nobody knows"
    return "it has instructions for int8" if has_int8 else "it has none for int8, which gains little time there"
