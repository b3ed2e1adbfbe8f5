"""Creates a W&B workspace with panels for the runs of a project.

    python scripts/wandb_dashboard.py --entity my-team         # saves a new workspace and prints its address
    python scripts/wandb_dashboard.py --offline workspace.json  # writes the specification, without an account

Requires ``pip install 'stormproof[dashboard]'``. Without ``--offline``, it requires an API key.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

STEP = "step"


def main() -> None:
    """Saves or writes the workspace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", default="stormproof", help="the project in logger.project (default: stormproof)")
    parser.add_argument("--entity", help="team or user (default: the owner of the API key)")
    parser.add_argument("--offline", type=Path, metavar="FILE", help="write the specification to this file instead")
    chosen = parser.parse_args()
    if chosen.offline is None:
        entity = chosen.entity or wandb.Api().default_entity
        if entity is None:
            parser.error("The API key has no default entity. Pass --entity.")
        print(workspace(chosen.project, entity).save().url)
        return
    dashboard = workspace(chosen.project, chosen.entity or "")
    view = dashboard._to_model()  # noqa: SLF001 (there is no public access to the specification)
    chosen.offline.write_text(view.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n")


def workspace(project: str, entity: str) -> ws.Workspace:
    """Returns the unsaved workspace of a project. W&B adds panels for all other metrics."""
    return ws.Workspace(
        name="Stormproof",
        project=project,
        entity=entity,
        auto_generate_panels=True,
        settings=ws.WorkspaceSettings(x_axis=STEP),
        sections=[
            ws.Section(name=name, panels=panels, is_open=True)
            for name, panels in {
                "Progress": PROGRESS,
                "Gradients": GRADIENTS,
                "Neurons": NEURONS,
                "Recovery": RECOVERY,
                "Time": TIME,
                "Comparison of activations and losses": COMPARISON,
            }.items()
        ],
    )


def line_panel(title: str, *names: str, log: bool = False) -> wr.LinePlot:
    """Returns a panel of metrics over the step."""
    return wr.LinePlot(title=title, x=STEP, y=list(names), log_y=log or None)


def group_panels(title: str, group: str, log: bool = False) -> wr.LinePlot:
    """Returns a panel of all metrics below ``group`` over the step, one per layer or place."""
    return wr.LinePlot(title=title, x=STEP, metric_regex=f"^{group}/.+", log_y=log or None)


def bar_panel(title: str, name: str, by: str) -> wr.BarPlot:
    """Returns a panel of a summary metric grouped by a setting: mean and standard error."""
    return wr.BarPlot(
        title=title, metrics=[name], groupby=wr.Config(by), groupby_aggfunc="mean", groupby_rangefunc="stderr"
    )


PROGRESS = [
    line_panel("Loss", "train/loss", "val/loss", log=True),
    line_panel("Loss of the epoch", "train/epoch_loss"),
    line_panel("Accuracy", "train/accuracy", "val/accuracy"),
    line_panel("F1", "val/f1"),
    line_panel("Generalization gap", "generalization/gap"),
    line_panel("Root mean squared error", "train/rmse", "val/rmse"),
    line_panel("Mean absolute error", "val/mae"),
    line_panel("R²", "val/r2"),
    line_panel("Learning rate", "optimizer/lr"),
]
GRADIENTS = [
    line_panel("Gradient norm, before clipping", "gradients/norm", log=True),
    group_panels("By layer", "gradients/norm", log=True),
    line_panel("Update relative to the weights", "updates/ratio", log=True),
    group_panels("Update by layer", "updates/ratio", log=True),
    line_panel("Share of clipped steps", "gradients/clipped_fraction"),
]
NEURONS = [
    line_panel("Dead units", "units/dead_fraction"),
    group_panels("Dead units by place", "units/dead_fraction"),
    group_panels("Silent in the epoch", "units/silent_fraction"),
    group_panels("Zeros among the outputs", "units/sparsity"),
]
RECOVERY = [
    line_panel("Restarts", "recovery/restarts"),
    line_panel("Steps repeated", "recovery/lost_steps"),
    line_panel("Seconds until training resumed", "recovery/seconds"),
    line_panel("Effective time ratio", "recovery/effective_time_ratio"),
    line_panel("Seconds of delay per checkpoint", "checkpoint/stall_seconds"),
    line_panel("Skipped steps and rollbacks", "divergence/skipped_steps", "divergence/rollbacks"),
    line_panel("Learning-rate scale", "divergence/lr_factor"),
]
TIME = [
    line_panel("Seconds per batch", "time/batch_seconds"),
    line_panel("Share spent waiting for data", "time/data_wait_fraction"),
]
COMPARISON = [
    bar_panel("Test accuracy by activation", "test/accuracy", "activation._target_"),
    bar_panel("Test accuracy by loss", "test/accuracy", "loss._target_"),
    bar_panel("Test error by activation", "test/rmse", "activation._target_"),
    bar_panel("Test error by loss", "test/rmse", "loss._target_"),
    wr.ScatterPlot(
        title="Accuracy and size", x=wr.Config("size.parameters"), y=wr.SummaryMetric("test/accuracy"), log_x=True
    ),
    wr.RunComparer(diff_only="split"),
]


if __name__ == "__main__":
    main()
