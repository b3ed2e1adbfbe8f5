"""All that a run imports, for the process that runs are forked from."""

from stormproof_train import cli, main  # noqa: F401 (for what comes with them)
from stormproof_train.loggers import wandb_history  # noqa: F401 (which a run imports late)
