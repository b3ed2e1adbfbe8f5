from pathlib import Path

import hydra

from stormproof_train.config.changed_settings import find_changed_settings


def test_what_differs_from_the_default_is_a_choice_or_an_argument_of_it():
    settings = {
        "seed": 3,
        "activation": {"_target_": "torch.nn.ELU", "alpha": 0.5, "inplace": False},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.05, "eps": 1e-8},
        "loss": {"_target_": "stormproof_train.losses.CrossEntropy", "label_smoothing": 0.0},
        "model": {"_target_": "mine.that_must_not_be_imported", "width": 9},
    }
    assert find_changed_settings(settings) == [
        {"key": "activation", "value": "elu", "default": "relu"},
        {"key": "seed", "value": 3, "default": 0},
        {"key": "activation.alpha", "value": 0.5, "default": 1.0},
        {"key": "optimizer.lr", "value": 0.05, "default": 0.001},
        {"key": "model._target_", "value": "mine.that_must_not_be_imported", "default": "stormproof_train.models.MLP"},
        {"key": "model.width", "value": 9, "default": 128},
    ]


def test_a_config_of_the_user_that_is_in_use_changes_no_default(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("optimizer: {lr: 9}\n")
    settings = {"optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.05}}
    expected = find_changed_settings(settings)
    with hydra.initialize_config_dir(str(tmp_path), version_base=None):
        assert find_changed_settings(settings) == expected
        assert hydra.compose("mine").optimizer.lr == 9
