"""Help of the subcommand ``predict``.

Example:
    >>> print_help([])  # doctest: +ELLIPSIS
    Predicts on files...
"""

from __future__ import annotations

from collections.abc import Sequence

USAGE = """Predicts on files with a network that compress has created, without torch.

  stormproof-train predict model=compressed/<name> input=photos/
  stormproof-train predict model=compressed/<name>/model.onnx input=new.csv output=predictions.csv

  model=        ONNX file, or a folder with a model.onnx  (required)
  input=        an image, a folder of images, a .csv with the columns of the training data, or an .npy or .npz of inputs
                (samples, …) as in the training data  (required)
  data.separator=, data.encoding=, data.decimal=   format of the .csv, if it differs from that of the training data
  output=       CSV file with one row per sample: the predicted class and all probabilities, or the values;
                without it, a short table is printed"""


def print_help(_: Sequence[str]) -> None:
    """Prints the help of the subcommand ``predict``."""
    print(USAGE)
