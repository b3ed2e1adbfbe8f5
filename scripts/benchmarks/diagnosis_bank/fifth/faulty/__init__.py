"""Runs with one fault each."""

from __future__ import annotations

from diagnosis_bank.fifth.faulty import (
    everyday_data_and_losses,
    everyday_training,
    science_ensembles,
    science_equations,
    science_models,
    signals_audio,
    signals_sensors,
    signals_series,
    systems_adaptation,
    systems_prediction,
    systems_retrieval,
)
from diagnosis_bank.program import Program

PROGRAMS: list[Program] = [
    *everyday_data_and_losses.PROGRAMS,
    *everyday_training.PROGRAMS,
    *science_ensembles.PROGRAMS,
    *science_equations.PROGRAMS,
    *science_models.PROGRAMS,
    *signals_audio.PROGRAMS,
    *signals_sensors.PROGRAMS,
    *signals_series.PROGRAMS,
    *systems_adaptation.PROGRAMS,
    *systems_prediction.PROGRAMS,
    *systems_retrieval.PROGRAMS,
]
