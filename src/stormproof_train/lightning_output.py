"""What Lightning says of itself, and nobody needs to hear."""

from __future__ import annotations

import logging
import warnings

from stormproof_train.console import format_warning


def suppress_lightning_output() -> None:
    """Leaves warnings; drops tips, device lists, and advice that this application has taken or weighed."""
    for name in ("pytorch_lightning", "stormproof.preemption"):  # the application describes a preemption itself
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.formatwarning = format_warning
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`srun` command is available")  # said where no SLURM job runs
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")  # Lightning 2.6's own, on torch 2.10 and later
    warnings.filterwarnings("ignore", message=".*use `self.log.*sync_dist=True.*")  # torchmetrics has reduced these
    warnings.filterwarnings("ignore", message=".*WeightAveraging.* doesn't support sharding")  # nor is anything sharded
    warnings.filterwarnings("ignore", message=".*number of training batches.*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need to be provided")
