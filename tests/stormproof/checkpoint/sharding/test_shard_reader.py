"""No code from a sharded checkpoint is run, and no file outside its folder is read."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, BytesStorageMetadata, MetadataIndex

from stormproof.checkpoint import Checkpoint
from stormproof.checkpoint.sharding import shard_reader
from stormproof.checkpoint.sharding.shard_reader import ShardReader, find_shard_problem, load_full, unflatten
from tests.support.sharded_checkpoints import make_sharded_store

FILES = {".metadata", "__0_0.distcp", "meta.pt"}


def _opener(checkpoint: Checkpoint) -> Any:
    return lambda name: (checkpoint.path / name).open("rb")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return make_sharded_store(tmp_path, [10]).read_checkpoints()[0]


class _Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["HARM"],)


@pytest.fixture
def harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    return tmp_path / "harm"


def test_a_good_checkpoint_has_no_problem(checkpoint: Checkpoint):
    assert find_shard_problem(_opener(checkpoint), FILES) is None


def test_metadata_with_code_is_refused_and_not_run(checkpoint: Checkpoint, harm: Path):
    (checkpoint.path / ".metadata").write_bytes(pickle.dumps(_Harmful()))
    assert find_shard_problem(_opener(checkpoint), FILES) == (
        "its file .metadata is not valid metadata of torch.distributed.checkpoint: it contains posix.mkdir"
    )
    assert not harm.exists()


@pytest.mark.parametrize("content", [b"", b"x", pickle.dumps({"a": 1})])
def test_metadata_of_another_type_is_refused(content: bytes, checkpoint: Checkpoint):
    (checkpoint.path / ".metadata").write_bytes(content)
    assert "its file .metadata is not valid metadata" in str(find_shard_problem(_opener(checkpoint), FILES))


def test_an_unsharded_state_with_code_is_refused_and_not_run(checkpoint: Checkpoint, harm: Path):
    torch.save({"hook": _Harmful()}, checkpoint.path / "meta.pt")
    assert "meta.pt: torch.load(weights_only=True) refuses it: it contains posix.mkdir" in str(
        find_shard_problem(_opener(checkpoint), FILES)
    )
    assert not harm.exists()


def _change_metadata(checkpoint: Checkpoint, change: Any) -> None:
    metadata = ShardReader.from_folder(checkpoint.path).read_metadata()
    change(metadata)
    (checkpoint.path / ".metadata").write_bytes(pickle.dumps(metadata))


def test_a_value_with_code_is_refused_and_not_run(checkpoint: Checkpoint, harm: Path):
    content = io.BytesIO()
    torch.save(_Harmful(), content)
    shard = checkpoint.path / "__0_0.distcp"
    offset = shard.stat().st_size
    shard.write_bytes(shard.read_bytes() + content.getvalue())

    def add_value(metadata: Any) -> None:
        metadata.state_dict_metadata["hook"] = BytesStorageMetadata()
        info = next(iter(metadata.storage_data.values()))
        metadata.storage_data[MetadataIndex("hook")] = type(info)("__0_0.distcp", offset, len(content.getvalue()))

    _change_metadata(checkpoint, add_value)
    assert find_shard_problem(_opener(checkpoint), FILES) == (
        "torch.load(weights_only=True) refuses hook: it contains posix.mkdir, which is code and not data"
    )
    assert not harm.exists()


@pytest.mark.parametrize("path", ["../other.distcp", "/etc/passwd", "__7_0.distcp"])
def test_metadata_that_refers_to_a_file_outside_the_checkpoint_is_refused(path: str, checkpoint: Checkpoint):
    def lead_out(metadata: Any) -> None:
        next(iter(metadata.storage_data.values())).relative_path = path

    _change_metadata(checkpoint, lead_out)
    assert find_shard_problem(_opener(checkpoint), FILES) == (
        f"its file .metadata refers to {path!r}, which is not a file of this checkpoint"
    )
    with pytest.raises(ValueError, match="not a file of this checkpoint"):
        load_full(checkpoint.path)


def test_a_checkpoint_without_an_unsharded_state_is_refused(checkpoint: Checkpoint):
    assert find_shard_problem(_opener(checkpoint), FILES - {"meta.pt"}) == "it has no file meta.pt"


def test_unflatten_restores_lists_and_dicts(checkpoint: Checkpoint):
    metadata = ShardReader.from_folder(checkpoint.path).read_metadata()
    metadata.planner_data = {"a.0.b": ("a", 0, "b"), "a.1.b": ("a", 1, "b"), "c": ("c",), "d.0": ("d", "0")}
    tree = unflatten({"a.0.b": 1, "a.1.b": 2, "c": 3, "d.0": 4, "e": 5}, metadata)
    assert tree == {"a": [{"b": 1}, {"b": 2}], "c": 3, "d": {"0": 4}, "e": 5}


class _ByAttribute:
    """Pickled as Python 3.11.0 to 3.11.3 pickles a member of an enumeration."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name

    def __reduce__(self) -> Any:
        return getattr, (self.owner, self.name)


def test_a_memory_format_is_read_as_any_python_writes_it(checkpoint: Checkpoint):
    def write_as_attribute(metadata: Any) -> None:
        metadata.planner_data["format"] = _ByAttribute(_MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT")

    _change_metadata(checkpoint, write_as_attribute)
    metadata = ShardReader.from_folder(checkpoint.path).read_metadata()
    assert metadata.planner_data is not None
    assert metadata.planner_data["format"] is _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT


@pytest.mark.parametrize(("owner", "name"), [(MetadataIndex, "__subclasses__"), (torch.Size, "numel")])
def test_no_other_attribute_is_read(owner: Any, name: str, checkpoint: Checkpoint):
    def write_as_attribute(metadata: Any) -> None:
        metadata.planner_data["format"] = _ByAttribute(owner, name)

    _change_metadata(checkpoint, write_as_attribute)
    problem = find_shard_problem(_opener(checkpoint), FILES)
    assert str(problem).endswith("it contains builtins.getattr")


@pytest.mark.parametrize("reader", ["pickle.Unpickler.load", "torch.load"])
def test_too_little_memory_is_not_a_damaged_checkpoint(
    reader: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError

    if reader == "torch.load":
        monkeypatch.setattr(torch, "load", fail)
    else:
        monkeypatch.setattr(shard_reader._MetadataUnpickler, "load", fail, raising=False)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        find_shard_problem(_opener(checkpoint), FILES)
    monkeypatch.undo()
    assert find_shard_problem(_opener(checkpoint), FILES) is None


def test_values_are_read_from_one_open_file(checkpoint: Checkpoint):
    opened: list[str] = []

    def open_file(name: str) -> Any:
        opened.append(name)
        return (checkpoint.path / name).open("rb")

    reader = ShardReader(open_file, FILES)
    objects = reader.read_objects(reader.read_metadata())
    assert objects["optimizer_0.param_groups.0.lr"] == 0.1
    assert opened == [".metadata", "__0_0.distcp"]
