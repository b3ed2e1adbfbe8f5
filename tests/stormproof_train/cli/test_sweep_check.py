import pytest

from stormproof_train.cli.sweep import check_sweep
from stormproof_train.errors import UserError


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["seed=1,2,1"], "seed=1,2,1 lists the value 1 twice. List each value once"),
        (["++model.width=choice(8,8)"], "model.width=choice(8,8) lists the value 8 twice. List each value once"),
        (["activation=relu,elu,relu", "seed=1"], "activation=relu,elu,relu lists the value relu twice"),
        (["seed=1,2", "name=same"], "name=same gives all jobs of seed=1,2 the same name. Remove it"),
        (["seed=1,2", "tune=lr"], "tune=lr is not supported in a sweep. Remove -m"),
        (["--config-dir", "my", "seed=2,2"], "seed=2,2 lists the value 2 twice"),
        (["seed=range(3)", "name=a,b"], "name=a,b gives all jobs of seed=range(3) the same name"),
    ],
)
def test_a_sweep_of_which_two_jobs_would_be_one_is_refused(words: list[str], sentence: str):
    with pytest.raises(UserError) as excinfo:
        check_sweep(["-m", *words])
    assert str(excinfo.value).startswith(sentence)


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
