# pyright: reportMissingImports=false
"""Trains models of scvi-tools on its synthetic cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import scvi

OPTIONS: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}


def scvi_scvi(seed: int, callbacks: list[Any]) -> None:
    scvi.settings.seed = seed
    cells = scvi.data.synthetic_iid(batch_size=400)
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    scvi.model.SCVI(cells).train(
        max_epochs=30, batch_size=128, callbacks=callbacks, check_val_every_n_epoch=5, **OPTIONS
    )


def scvi_scanvi(seed: int, callbacks: list[Any]) -> None:
    """Trains SCANVI from a trained SCVI. Cell types differ in 20 genes, and half of the labels are unknown."""
    scvi.settings.seed = seed
    cells = scvi.data.synthetic_iid(batch_size=400)
    generator = np.random.default_rng(seed)
    kinds = cells.obs["labels"].astype(str).to_numpy()
    for index, kind in enumerate(sorted(set(kinds))):
        cells.X[kinds == kind, index * 20 : index * 20 + 20] *= 3
    cells.obs["known"] = np.where(generator.random(len(kinds)) < 0.5, kinds, "Unknown")
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch", labels_key="known")
    model = scvi.model.SCVI(cells)
    model.train(max_epochs=5, **OPTIONS)
    scvi.model.SCANVI.from_scvi_model(model, "Unknown").train(max_epochs=20, callbacks=callbacks, **OPTIONS)
