# pyright: reportMissingImports=false
"""Trains message passing networks of chemprop on the computed log P of random molecules."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from chemprop import data, models, nn
from lightning import pytorch as pl
from projects import TRAINER
from rdkit import Chem
from rdkit.Chem import Crippen

PIECES = ["C", "CC", "N", "O", "C(C)", "C(=O)", "C(F)", "C(Cl)", "C(O)", "c1ccc(cc1)", "N(C)", "S"]


def train(seed: int, callbacks: list[Any], *, classify: bool) -> None:
    generator = random.Random(seed)
    smiles = sorted({"C" + "".join(generator.choices(PIECES, k=generator.randint(2, 7))) + "C" for _ in range(400)})
    values = [Crippen.MolLogP(Chem.MolFromSmiles(smile)) for smile in smiles]
    if classify:
        values = [float(value > 1.5) for value in values]
    pairs = zip(smiles, values, strict=True)
    points = [data.MoleculeDatapoint.from_smi(smile, np.array([value])) for smile, value in pairs]
    indices = data.make_split_indices([point.mol for point in points], "random", (0.8, 0.1, 0.1), seed=seed)
    training, validation, _ = data.split_data_by_indices(points, *indices)
    training_set, validation_set = data.MoleculeDataset(training[0]), data.MoleculeDataset(validation[0])
    if classify:
        head = nn.BinaryClassificationFFN()
    else:
        scaler = training_set.normalize_targets()
        validation_set.normalize_targets(scaler)
        head = nn.RegressionFFN(output_transform=nn.UnscaleTransform.from_standard_scaler(scaler))
    network = models.MPNN(nn.BondMessagePassing(), nn.MeanAggregation(), head, batch_norm=not classify)
    loaders = [data.build_dataloader(training_set, 32), data.build_dataloader(validation_set, 32, shuffle=False)]
    pl.Trainer(**TRAINER, max_epochs=12, log_every_n_steps=5, callbacks=callbacks).fit(network, *loaders)


def chemprop_regression(seed: int, callbacks: list[Any]) -> None:
    train(seed, callbacks, classify=False)


def chemprop_classification(seed: int, callbacks: list[Any]) -> None:
    train(seed, callbacks, classify=True)
