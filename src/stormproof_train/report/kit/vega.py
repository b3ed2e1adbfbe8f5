"""Provides Vega, Vega-Lite and Vega-Embed as one script that needs no network."""

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
    """Returns a script that sets ``window.vegaEmbed``, escaped for a script element.

    The package vl-convert-python takes two seconds to bundle it, so a copy is cached in the user's cache folder.
    """
    cache = _cache_path()
    if cache is not None:
        with suppress(OSError, ValueError):
            digest, _, script = cache.read_text(encoding="utf-8").partition("\n")
            if digest == _digest(script):
                return script
    script = vl_convert.javascript_bundle(SNIPPET).replace("</script", r"<\/script")
    if cache is not None:
        with suppress(OSError):  # the next call retries
            cache.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(cache) as file:
                file.write(f"{_digest(script)}\n{script}".encode())
    return script


def _cache_path() -> Path | None:
    """Returns the path of the cached copy, whose first line is its digest. None for a user without a home folder."""
    try:
        return platformdirs.user_cache_path("stormproof") / f"vega-embed-{version('vl-convert-python')}.txt"
    except RuntimeError:
        return None


def _digest(script: str) -> str:
    return hashlib.sha256(script.encode()).hexdigest()
