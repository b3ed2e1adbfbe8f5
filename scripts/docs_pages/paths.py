"""Folders that the generated pages are made from and written to."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
REFERENCE = "docs/reference"
API = f"{REFERENCE}/api"
