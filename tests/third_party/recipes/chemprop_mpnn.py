"""A message passing network by chemprop, as in its training notebook, on synthetic alkanes, alcohols and amines."""

from typing import Any

import numpy as np
from chemprop import data, models, nn
from lightning import pytorch as pl


def train(callbacks: list[Any]) -> None:
    smiles = ["C" * n + end for n in range(1, 13) for end in ("", "O", "N", "C(=O)O", "c1ccccc1", "Cl", "F", "C#N")]
    points = [data.MoleculeDatapoint.from_smi(smi, np.array([float(len(smi))])) for smi in smiles]
    indices = data.make_split_indices([point.mol for point in points], "random", (0.8, 0.1, 0.1))
    training, validation, _ = data.split_data_by_indices(points, *indices)
    training_set = data.MoleculeDataset(training[0])
    scaler = training_set.normalize_targets()
    validation_set = data.MoleculeDataset(validation[0])
    validation_set.normalize_targets(scaler)
    output = nn.UnscaleTransform.from_standard_scaler(scaler)
    mpnn = models.MPNN(
        nn.BondMessagePassing(d_h=64), nn.MeanAggregation(), nn.RegressionFFN(input_dim=64, output_transform=output),
        batch_norm=True, metrics=[nn.metrics.RMSE(), nn.metrics.MAE()],
    )  # fmt: skip
    trainer = pl.Trainer(max_epochs=15, accelerator="cpu", logger=False, log_every_n_steps=5, callbacks=callbacks)
    loaders = [data.build_dataloader(training_set, 8), data.build_dataloader(validation_set, 8, shuffle=False)]
    trainer.fit(mpnn, *loaders)
