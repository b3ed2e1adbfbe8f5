"""All that a run imports, for the process that runs are forked from."""

from stormproof_train import cli, main  # noqa: F401
from stormproof_train.wandb_logging import history  # noqa: F401
