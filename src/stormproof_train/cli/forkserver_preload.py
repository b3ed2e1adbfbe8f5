"""Imports everything that a run needs, for the process that runs are forked from."""

import stormproof_train.cli.main
import stormproof_train.loggers.wandb_history  # a run imports it late
import stormproof_train.main  # noqa: F401
