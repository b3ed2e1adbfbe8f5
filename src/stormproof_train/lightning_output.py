"""Suppresses irrelevant output of Lightning."""

from __future__ import annotations

import logging
import warnings

from stormproof_train.console import format_warning


def suppress_lightning_output() -> None:
    """Suppresses tips, device lists, and advice that does not apply. Other warnings are kept."""
    for name in ("pytorch_lightning", "stormproof.preemption"):  # the application describes a preemption itself
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.formatwarning = format_warning
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`srun` command is available")  # also printed outside of SLURM jobs
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # from Lightning 2.6 with torch 2.10 and later
    warnings.filterwarnings("ignore", message=".*use `self.log.*sync_dist=True.*")  # torchmetrics reduces these
    warnings.filterwarnings("ignore", message=".*WeightAveraging.* doesn't support sharding")  # checked by the config
    warnings.filterwarnings("ignore", message=".*number of training batches.*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need to be provided")
