import inspect
import pickle

import pytest

from stormproof import errors
from stormproof.errors import StormproofError

CODES = {
    "StormproofError": 1,  # no more is known
    "NotResumableError": 2,  # the user's to change
    "FolderTakenError": 2,
    "FolderLostError": 74,  # storage
    "StorageError": 74,
    "DamagedError": 74,
    "NoGoodCheckpointError": 74,
    "RanksDisagreeError": 75,  # start me again
    "DivergedError": 76,
}


def test_every_error_has_its_code():
    kinds = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}
    assert kinds.pop("PreemptedExit").exit_code == 75  # no error, but a way to leave
    assert {name: kind.exit_code for name, kind in kinds.items()} == CODES


@pytest.mark.parametrize("name", sorted(CODES.keys() - {"NoGoodCheckpointError"}))  # which adds the way out
def test_every_error_says_in_a_sentence_what_it_is_and_keeps_the_words_it_was_given(name: str):
    kind = getattr(errors, name)
    assert (kind.__doc__ or "").strip().partition("\n")[0].endswith(".")
    assert issubclass(kind, StormproofError)
    assert str(kind("what, where, and the way out")) == "what, where, and the way out"


def test_a_program_that_knows_only_of_runtime_errors_catches_them():
    assert issubclass(StormproofError, RuntimeError)


def test_the_code_of_one_error_may_be_another_s():
    error = StormproofError("rank 0: the disk is full")
    error.exit_code = 74  # as carried over from rank 0
    assert (error.exit_code, StormproofError.exit_code) == (74, 1)


def test_an_error_survives_pickling_between_processes():
    error = errors.NoGoodCheckpointError("all three are damaged")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
