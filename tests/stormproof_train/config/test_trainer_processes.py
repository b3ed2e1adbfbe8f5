from typing import Any

import pytest

from stormproof_train.config.plan import match_launcher
from stormproof_train.config.signature_binding import bind
from stormproof_train.errors import UserError

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
SRUN = {"SLURM_PROCID": "1", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "8", "SLURM_NNODES": "2"}
ALONE = {"torchrun": {}, "salloc": {**SRUN, "SLURM_JOB_NAME": "interactive"}, "sbatch": {"SLURM_NTASKS": "8"}}


def make_trainer(**arguments: Any) -> Any:
    return bind({"_target_": "pytorch_lightning.Trainer", **arguments}, "trainer")


@pytest.mark.parametrize(("environ", "each", "nodes"), [(TORCHRUN, 2, 2), (SRUN, 4, 2)])
def test_an_open_number_is_the_launchers(environ: dict[str, str], each: int, nodes: int):
    trainer_arguments = match_launcher(make_trainer(strategy="ddp", devices="auto"), environ).kwargs
    assert (trainer_arguments["devices"], trainer_arguments["num_nodes"], trainer_arguments["strategy"]) == (
        each,
        nodes,
        "ddp",
    )
    assert match_launcher(make_trainer(devices=each, num_nodes=nodes), environ).kwargs["devices"] == each


@pytest.mark.parametrize("environ", ALONE.values(), ids=ALONE.keys())
@pytest.mark.parametrize("devices", ["auto", 1, 2, [0, 1]])
def test_without_a_launcher_the_config_counts(environ: dict[str, str], devices: Any):
    trainer_config = make_trainer(devices=devices)
    assert match_launcher(trainer_config, environ) is trainer_config


@pytest.mark.parametrize("given", [{}, {"devices": 2}, {"devices": "2", "num_nodes": 1}, {"devices": [0, 1, 2]}])
@pytest.mark.parametrize("environ", [TORCHRUN, SRUN])
def test_another_number_is_a_sentence_that_names_the_way_out(given: dict[str, Any], environ: dict[str, str]):
    with pytest.raises(UserError, match=r"the launcher started \d on each of 2 nodes, but .*\. Use trainer=ddp"):
        match_launcher(make_trainer(**given), environ)


@pytest.mark.parametrize("devices", [-1, "-1", "0,1"])
def test_what_only_lightning_can_read_is_left_to_it(devices: Any):
    trainer_config = make_trainer(devices=devices)
    assert match_launcher(trainer_config, TORCHRUN) is trainer_config
