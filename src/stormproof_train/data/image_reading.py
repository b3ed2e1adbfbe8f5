"""An image in a file, opened."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from stormproof_train.errors import UserError


def open_image(file: str | Path, mode: str, location: str) -> Image.Image:
    """The image in a file, read to its end.

    Args:
        file: the image.
        mode: Pillow's name of what it is converted to: ``RGB``, or ``L`` for grey.
        location: it is named, for messages.

    Raises:
        UserError: if the file holds no image, a broken one, or one of more than 8 bits a channel.
    """
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):  # converted, all above 255 would become white
                raise UserError(f"{location}: the image {file} has more than 8 bits a channel; convert it to 8")
            return image.convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{location}: the image {file} cannot be read ({error}): repair or remove it") from error
