"""Healthy runs with unusual symptoms."""

from __future__ import annotations

from diagnosis_bank.fifth.healthy import (
    everyday_data_and_losses,
    everyday_training,
    science_equations,
    science_fields,
    science_models,
    signals_audio,
    signals_events,
    signals_series,
    systems_contrastive,
    systems_decision,
    systems_ranking,
    systems_transfer,
)
from diagnosis_bank.program import Program

PROGRAMS: list[Program] = [
    *everyday_data_and_losses.PROGRAMS,
    *everyday_training.PROGRAMS,
    *science_equations.PROGRAMS,
    *science_fields.PROGRAMS,
    *science_models.PROGRAMS,
    *signals_audio.PROGRAMS,
    *signals_events.PROGRAMS,
    *signals_series.PROGRAMS,
    *systems_contrastive.PROGRAMS,
    *systems_decision.PROGRAMS,
    *systems_ranking.PROGRAMS,
    *systems_transfer.PROGRAMS,
]
