"""Vega, Vega-Lite and Vega-Embed as one script that needs no network."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import platformdirs
import vl_convert

from stormproof.checkpoint import atomic_write

SNIPPET = "window.vegaEmbed = vegaEmbed;"


def load_vega_script() -> str:
    """The script, which sets ``window.vegaEmbed``, as it may stand in a page.

    It comes out of the package vl-convert-python, which takes two seconds to put it together; a copy is kept in the
    user's cache folder.
    """
    cache = _cache_path()
    if cache is not None:
        with suppress(OSError, ValueError):
            digest, _, script = cache.read_text(encoding="utf-8").partition("\n")
            if digest == _digest(script):
                return script
    script = vl_convert.javascript_bundle(SNIPPET).replace("</script", r"<\/script")
    if cache is not None:
        with suppress(OSError):  # it is made again next time
            cache.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(cache) as file:
                file.write(f"{_digest(script)}\n{script}".encode())
    return script


def _cache_path() -> Path | None:
    """Where the copy lies, its digest in the first line; None for a user without a home."""
    try:
        return platformdirs.user_cache_path("stormproof") / f"vega-embed-{version('vl-convert-python')}.txt"
    except RuntimeError:
        return None


def _digest(script: str) -> str:
    return hashlib.sha256(script.encode()).hexdigest()
