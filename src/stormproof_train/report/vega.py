"""Vega, Vega-Lite and Vega-Embed as one script that needs no network."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import version

import platformdirs
import vl_convert

from stormproof.checkpoint import atomic_write

SNIPPET = "window.vegaEmbed = vegaEmbed;"


def vega_script() -> str:
    """The script, which sets ``window.vegaEmbed``, as it may stand in a page.

    It comes out of the package vl-convert-python, which takes two seconds to put it together; a copy is kept in the
    user's cache folder.
    """
    folder = platformdirs.user_cache_path("stormproof")
    kept = folder / f"vega-embed-{version('vl-convert-python')}.js"
    try:
        return kept.read_text(encoding="utf-8")
    except OSError:
        script = vl_convert.javascript_bundle(SNIPPET).replace("</script", r"<\/script")
    with suppress(OSError):  # it is made again next time
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(kept) as file:
            file.write(script.encode())
    return script
