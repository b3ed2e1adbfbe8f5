import sys
from pathlib import Path

import pytest

MODULES = {"a": "from drawn import b", "b": "from drawn import c", "c": "from drawn import b", "d": "import os"}


@pytest.mark.slow
def test_it_counts_imports_and_cycles_and_draws_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import import_graph

    package = tmp_path / "drawn"
    package.mkdir()
    for name, text in {"__init__": "", **MODULES}.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.setattr(sys, "argv", ["import_graph.py", str(package), str(tmp_path / "figure.svg")])
    monkeypatch.setattr(sys, "path", list(sys.path))
    import_graph.main()
    assert capsys.readouterr().out == f"{package}: 4 modules and packages, 3 imports, 1 cycles\n"
    assert "<svg" in (tmp_path / "figure.svg").read_text()
