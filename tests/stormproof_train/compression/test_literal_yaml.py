"""A config as a file that Hydra takes for what it says."""

import pytest
from omegaconf import OmegaConf

from stormproof_train.compression.fine_tuning import dump_literal_yaml

TEXTS = [
    "${oc.env:HOME}", "\\${oc.env:HOME}", "\\\\${oc.env:HOME}", "a${b}c${d}", "1e3", "null", "true", "a: b", "- x", "",
    "\\", "C:\\data", "$", "{", "ü", "'", '"', "#", "two\nlines", "~",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_as_it_was(text: str):
    config = {"key": text, "list": [text], "nested": {"key": text}}
    assert OmegaConf.to_container(OmegaConf.create(dump_literal_yaml(config)), resolve=True) == config


def test_numbers_stay_numbers():
    config = {"lr": 1e-05, "beta": [0.9, 0.999], "steps": 10, "on": True, "none": None, "large": 1e22}
    assert OmegaConf.to_container(OmegaConf.create(dump_literal_yaml(config)), resolve=True) == config
