import pytest

from stormproof_train.errors import UserError
from stormproof_train.sweep_words import check_sweep


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["seed=1,2,1"], "seed=1,2,1 has the value 1 twice: give each value once"),
        (["++model.width=choice(8,8)"], "model.width=choice(8,8) has the value 8 twice: give each value once"),
        (["activation=relu,elu,relu", "seed=1"], "activation=relu,elu,relu has the value relu twice"),
        (["seed=1,2", "name=same"], "name=same is one name for the jobs of seed=1,2: leave it out, so that each has"),
        (["--config-dir", "my", "seed=2,2"], "seed=2,2 has the value 2 twice"),
        (["seed=range(3)", "name=a,b"], "name=a,b is one name for the jobs of seed=range(3)"),
    ],
)
def test_a_sweep_of_which_two_jobs_would_be_one_is_refused(words: list[str], sentence: str):
    with pytest.raises(UserError) as caught:
        check_sweep(["-m", *words])
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    "words",
    [
        ["seed=1,2", "activation=relu,elu"],
        ["name=a,b"],
        ["name=one", "seed=1"],
        ["seed=1,2", "name='run-${seed}'"],
        ["seed=1,2", "model.widths=[8,8]"],
        ["seed=[1"],  # Hydra says what is wrong
    ],
    ids=" ".join,
)
def test_other_sweeps_are_left_alone(words: list[str]):
    check_sweep(["-m", *words])
