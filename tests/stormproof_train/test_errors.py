import pytest
from torch._utils import ExceptionWrapper

from stormproof_train.errors import ExitCode, RunError, StopError, StorageError, UserError, rank_by_similarity


def test_the_exit_codes_are_those_that_shells_and_schedulers_know():
    assert {code.name: int(code) for code in ExitCode} == {
        "FINISHED": 0,
        "FAILED": 1,
        "USER_MISTAKE": 2,
        "STORAGE": 74,  # EX_IOERR
        "START_AGAIN": 75,  # EX_TEMPFAIL
        "DIVERGED": 76,
        "CRASH_LOOP": 77,
        "HANG": 78,
        "INTERRUPTED": 128 + 2,
        "BROKEN_PIPE": 128 + 13,
        "TERMINATED": 128 + 15,
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RunError("s"), 1),
        (UserError("s"), 2),
        (StorageError("s"), 74),
        (StopError("s", ExitCode.INTERRUPTED), 130),
        (StopError("s", ExitCode.TERMINATED), 143),
    ],
)
def test_an_error_is_its_sentence_and_its_code(error: RunError, code: int):
    assert isinstance(error, RunError)
    assert str(error) == "s"
    assert error.exit_code == code


def test_a_loader_workers_error_is_its_sentence_without_the_traceback():
    error = UserError("data: no: good")
    from_a_worker = ExceptionWrapper((UserError, error, None), where="in DataLoader worker process 0")
    with pytest.raises(UserError) as excinfo:
        from_a_worker.reraise()
    assert str(excinfo.value) == "data: no: good"


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("elo", ["tanh", "relu", "elu"], ["elu", "relu", "tanh"]),
        ("RELU", ["elu", "relu"], ["relu", "elu"]),
        ("relu", ["gelu", "relu"], ["relu", "gelu"]),
        ("zzz", ["b", "a"], ["a", "b"]),
        ("x", [], []),
    ],
    ids=["misspelt", "capitals", "right", "like none: by the alphabet", "nothing known"],
)
def test_the_nearest_name_comes_first_and_none_is_lost(word: str, known: list[str], expected: list[str]):
    assert rank_by_similarity(word, known) == expected
