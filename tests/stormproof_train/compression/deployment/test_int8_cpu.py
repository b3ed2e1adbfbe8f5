from pathlib import Path

import pytest

from stormproof_train.compression.deployment import int8_cpu
from stormproof_train.compression.deployment.int8_cpu import cpu_has_vnni

LISTED = {
    "flags\t\t: fpu avx2 avx512f avx512_vnni": True,
    "processor : 0\nflags : sse avx_vnni\nprocessor : 1\nflags : sse avx_vnni": True,
    "flags : fpu sse avx2": False,
    "Features\t: fp asimd asimddp": True,
    "Features : fp asimd i8mm": True,
    "Features : fp asimd": False,
    "vendor_id : nobody": None,
}


@pytest.mark.parametrize(("text", "wanted"), LISTED.items())
def test_linux_lists_what_the_cpu_can_do(
    text: str, wanted: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(int8_cpu.sys, "platform", "linux")
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_has_vnni(tmp_path / "cpuinfo") is wanted


@pytest.mark.parametrize(("platform", "machine", "wanted"), [("darwin", "arm64", True), ("darwin", "x86_64", None)])
def test_a_mac_is_known_by_its_processor(
    platform: str, machine: str, wanted: bool | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(int8_cpu.sys, "platform", platform)
    monkeypatch.setattr(int8_cpu.platform, "machine", lambda: machine)
    assert cpu_has_vnni() is wanted


def test_where_nothing_is_listed_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(int8_cpu.sys, "platform", "win32")
    assert cpu_has_vnni(tmp_path / "cpuinfo") is None
