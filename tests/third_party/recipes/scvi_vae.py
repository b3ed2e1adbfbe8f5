"""SCVI by scvi-tools on its synthetic cells."""

from typing import Any

import scvi


def train(callbacks: list[Any]) -> None:
    scvi.settings.seed = 1
    cells = scvi.data.synthetic_iid(batch_size=200)
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(cells, n_hidden=64)
    model.train(max_epochs=20, batch_size=64, accelerator="cpu", callbacks=callbacks)
