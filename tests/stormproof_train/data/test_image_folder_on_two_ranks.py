"""On two ranks that a launcher started, rank 0 verifies the images for both."""

import json
import sys
from pathlib import Path

import pytest

from stormproof.distributed.gloo_shutdown import destroy_gloo_before_exit
from stormproof.errors import StormproofError
from stormproof_train.data import image_folder
from stormproof_train.data.image_folder import ImageFolder
from stormproof_train.errors import UserError
from tests.support.image_trees import write_pets
from tests.support.ranks import run_on_two_ranks
from tests.support.task_fits import IGNORE_LIGHTNING_WARNINGS, make_task, make_trainer

VERIFIED: list[str] = []


def _refuse_the_first(files: list[str]) -> None:
    VERIFIED.extend(files)
    raise UserError(f"data: the image {Path(files[0]).name} cannot be read")


def _on_two_ranks(folder: Path) -> None:
    image_folder.check_images = _refuse_the_first  # pyright: ignore[reportAttributeAccessIssue] (takes a list)
    data = ImageFolder(str(folder / "images"), image_size=8, batch_size=8)
    trainer, _ = make_trainer(folder, logger=False, devices=2, strategy="ddp")
    task = make_task(data.load_spec())
    before = len(VERIFIED)
    sentence, code = "", None
    try:
        trainer.fit(task, datamodule=data)
    except (StormproofError, UserError) as error:
        sentence, code = str(error), int(error.exit_code)
    result = {"before": before, "verified": len(VERIFIED), "sentence": sentence, "code": code}
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(result))


@pytest.mark.slow
@IGNORE_LIGHTNING_WARNINGS
def test_rank_0_reads_the_held_out_images_and_all_ranks_end_by_what_it_finds(tmp_path: Path):
    write_pets(tmp_path / "images", 10)
    run_on_two_ranks(__file__, str(tmp_path))
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first["sentence"].startswith("data: the image ")
    assert second["sentence"] == f"rank 0: {first['sentence']}"
    assert (first["code"], second["code"]) == (2, 2)
    assert (first["before"], first["verified"]) == (0, 8)  # of 30 images, 4 for validation and 4 for the test
    assert (second["before"], second["verified"]) == (0, 0)


if __name__ == "__main__":
    destroy_gloo_before_exit()
    _on_two_ranks(Path(sys.argv[1]))
