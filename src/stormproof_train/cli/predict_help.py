"""How ``predict`` is called."""

from __future__ import annotations

from collections.abc import Sequence

USAGE = """Predicts with a network that compress has made, on files; it takes no torch.

  stormproof-train predict model=compressed/<name> input=photos/
  stormproof-train predict model=compressed/<name>/model.onnx input=new.csv output=predictions.csv

  model=        the ONNX file, or a folder with a model.onnx  (has to be given)
  input=        an image or a folder of them, a .csv with the columns of the training, or an .npy or .npz of inputs
                (samples, …) as the data of the training give them  (has to be given)
  data.separator=, data.encoding=, data.decimal=   of the .csv, where it is written otherwise than the training's
  output=       a CSV file: a row a sample, with the predicted class and all probabilities, or the values;
                else a short table is printed"""


def print_help(_: Sequence[str]) -> None:
    """Prints the help of the command ``predict``."""
    print(USAGE)
