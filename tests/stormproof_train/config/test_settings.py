import dataclasses

from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.plan import Plan
from stormproof_train.config.settings import CONFIG_KEYS, GROUPS, read_mirror


def test_the_keys_of_a_config_are_the_entries_of_a_plan():
    keys = {"mirror": "checkpoints"}  # the mirror is the only entry of checkpoints
    assert tuple(keys.get(field.name, field.name) for field in dataclasses.fields(Plan)) == CONFIG_KEYS


def test_a_mirror_is_normalized():
    assert read_mirror({"mirror": "S3://bucket//runs/"}) == "s3://bucket/runs"
    assert read_mirror({"mirror": None}) is read_mirror(None) is None


def test_every_group_has_a_folder_of_options():
    folders = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    assert folders - set(GROUPS) == {"data_optimizer", "experiment", "search"}
    assert set(GROUPS) <= folders
