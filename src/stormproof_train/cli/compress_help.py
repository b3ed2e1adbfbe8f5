"""Help of the subcommand ``compress``.

Example:
    >>> print_help([])  # doctest: +ELLIPSIS
    Makes the network of a run smaller and faster...
"""

from __future__ import annotations

from collections.abc import Sequence

USAGE = """Makes the network of a run smaller and faster, and reports the cost. Everything is in compressed/<name>/.

  stormproof-train compress run=runs/<name> budget=2pp                at most two points of accuracy
  stormproof-train compress run=runs/<name> budget=2% minimize=size   at most 2% of the original's accuracy, or error
  stormproof-train compress run=runs/<name> target.speedup=2          twice as fast, at the least loss

  run=               a run's folder, or a checkpoint of a run  (required)
  budget=            maximum loss on validation, the worse end of the 95% interval: 1pp, 2% or a number
  target.speedup=    required speedup; also target.size=, target.macs=
  minimize=latency   or size, or macs: selects the best artifact
  methods=           any of prune, factor, distill, int8, weights_int8: methods=[prune,int8]; by default prune, distill
                     and int8, factor if most weights are in dense layers, weights_int8 for transformers
  training=0.5       length of a fine-tuning run, relative to the run
  threads=1          number of threads for timing artifacts
  timing=0.4         seconds per timing of an artifact and batch size, repeated seven times
  samples=10000      maximum number of validation and test samples
  test=              false does not read the test split; by default as in the run
  name=              name of the folder; by default the name of the run
  folder=compressed
  optimizer… scheduler… augmentation… callbacks… logger… trainer…
                     as in training: other settings of the fine-tuning runs
  data…              new location of the data, if it was moved

Each smaller network is fine-tuned by an ordinary run in compressed/<name>/runs/. pruned-2x needs at most half as many
multiply-accumulates. The same command resumes a stopped compression. With another budget it reuses existing artifacts.
At the end model.onnx is the best artifact, model.ckpt its weights in PyTorch, and README.md its model card."""


def print_help(_: Sequence[str]) -> None:
    """Prints the help of the subcommand ``compress``."""
    print(USAGE)
