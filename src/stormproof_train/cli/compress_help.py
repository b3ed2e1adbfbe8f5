"""What ``compress`` takes."""

from __future__ import annotations

from collections.abc import Sequence

USAGE = """Makes a run's network smaller and faster, and tells what that costs; all is kept in compressed/<name>/.

  stormproof-train compress run=runs/<name> budget=2pp                at most two points of accuracy
  stormproof-train compress run=runs/<name> budget=2% minimize=size   at most 2% of the original's accuracy, or error
  stormproof-train compress run=runs/<name> target.speedup=2          twice as fast, at the least loss

  run=               a run's folder, or a checkpoint of a run  (has to be given)
  budget=            what may be lost on validation, the worse end of the 95% interval: 1pp, 2% or a number
  target.speedup=    how many times faster is enough; likewise target.size=, target.macs=
  minimize=latency   or size, or macs: by what the best artifact is chosen
  methods=           of prune, factor, distill, int8, weights_int8: methods=[prune,int8]; by default prune, distill and
                     int8, factor where most weights are in dense layers, weights_int8 for transformers
  training=0.5       the length of a fine-tuning, in lengths of the run
  threads=1          when artifacts are timed
  timing=0.4         seconds that each is timed for, with each size of batch, seven times over
  samples=10000      of validation and test, at most
  test=              false leaves the test split unread; by default as the run did
  name=              of the folder; by default the run's
  folder=compressed
  optimizer… scheduler… augmentation… callbacks… logger… trainer…
                     as in training: other settings of the fine-tuning runs
  data…              where the data are now, if elsewhere

Each smaller network is trained on by an ordinary run in compressed/<name>/runs/; pruned-2x has at least two
times fewer multiply-accumulates. The same command goes on where it was stopped, and one with another budget takes what
is there. In the end model.onnx is the best artifact, model.ckpt its weights in PyTorch, README.md its model card."""


def print_help(_: Sequence[str]) -> None:
    """Prints the help of the command ``compress``."""
    print(USAGE)
