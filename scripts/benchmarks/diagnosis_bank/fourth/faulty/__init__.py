"""Runs with one fault each."""

from __future__ import annotations

from diagnosis_bank.fourth.faulty import (
    language_graphs,
    language_inputs,
    language_rates,
    language_targets,
    language_vocabulary,
    loops_agents,
    loops_generative,
    loops_representation,
    loops_steps,
    tables_data,
    tables_distributions,
    tables_losses,
    tables_networks,
    vision_data,
    vision_heads,
    vision_layers,
    vision_training,
)
from diagnosis_bank.program import Program

PROGRAMS: list[Program] = [
    *language_graphs.PROGRAMS,
    *language_inputs.PROGRAMS,
    *language_rates.PROGRAMS,
    *language_targets.PROGRAMS,
    *language_vocabulary.PROGRAMS,
    *loops_agents.PROGRAMS,
    *loops_generative.PROGRAMS,
    *loops_representation.PROGRAMS,
    *loops_steps.PROGRAMS,
    *tables_data.PROGRAMS,
    *tables_distributions.PROGRAMS,
    *tables_losses.PROGRAMS,
    *tables_networks.PROGRAMS,
    *vision_data.PROGRAMS,
    *vision_heads.PROGRAMS,
    *vision_layers.PROGRAMS,
    *vision_training.PROGRAMS,
]
