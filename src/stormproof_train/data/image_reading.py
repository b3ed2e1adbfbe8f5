"""Opens image files."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from stormproof_train.errors import UserError


def open_image(file: str | Path, mode: str, location: str) -> Image.Image:
    """Reads an image completely.

    Args:
        file: Path of the image.
        mode: Pillow mode to convert to: ``RGB``, or ``L`` for gray.
        location: Beginning of error messages.

    Raises:
        UserError: If the file is not an image, is damaged, or has more than 8 bits per channel.
    """
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):  # conversion would clip all values above 255
                raise UserError(f"{location}: the image {file} has more than 8 bits per channel. Convert it to 8.")
            return image.convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{location}: the image {file} cannot be read ({error}). Repair or remove it.") from error
