"""Healthy runs with unusual symptoms."""

from __future__ import annotations

from diagnosis_bank.fourth.healthy import (
    language_adapters,
    language_models,
    language_pairs,
    loops_agents,
    loops_generative,
    loops_optimization,
    loops_representation,
    tables_losses,
    tables_networks,
    tables_training,
    vision_images,
    vision_networks,
    vision_training,
)
from diagnosis_bank.program import Program

PROGRAMS: list[Program] = [
    *language_adapters.PROGRAMS,
    *language_models.PROGRAMS,
    *language_pairs.PROGRAMS,
    *loops_agents.PROGRAMS,
    *loops_generative.PROGRAMS,
    *loops_optimization.PROGRAMS,
    *loops_representation.PROGRAMS,
    *tables_losses.PROGRAMS,
    *tables_networks.PROGRAMS,
    *tables_training.PROGRAMS,
    *vision_images.PROGRAMS,
    *vision_networks.PROGRAMS,
    *vision_training.PROGRAMS,
]
