"""The words of a compression."""

import pytest

from stormproof_train.cli.compress import parse_arguments
from stormproof_train.errors import UserError


def test_own_words_and_those_of_the_runs_are_told_apart():
    arguments = parse_arguments(
        ["run=runs/a-1", "budget=1pp", "methods=[prune,int8]", "target.speedup=2", "optimizer.lr=0.01", "trainer=ddp"]
    )
    assert arguments.settings.run == "runs/a-1"
    assert arguments.settings.budget == "1pp"
    assert arguments.settings.methods == ["prune", "int8"]
    assert arguments.settings.target == {"speedup": 2}
    assert arguments.run_overrides == ["optimizer.lr=0.01", "trainer=ddp"]


def test_one_method_needs_no_brackets():
    settings = parse_arguments(["run=runs/a", "budget=2%", "methods=int8"]).settings
    assert settings.allows("int8")
    assert not settings.allows("prune")


MISTAKES = {
    "no run": (["budget=1pp"], "compress needs run=…"),
    "no aim": (["run=a"], r"set a budget \(budget=1pp, 2% or a number\) or a target"),
    "no budget": (["run=a", "budget=some"], r"budget=some must be 1pp \(percentage points\), 2%"),
    "no sign": (["runs/a"], "runs/a is not a setting"),
    "a typing error": (["run=a", "budgt=1pp"], "budgt is not a setting of compress; did you mean budget?"),
    "another command's": (["run=a", "search.trials=3"], "search.trials is not a setting of compress"),
    "several": (["run=a,b", "budget=1pp"], "run=a,b must be a single value"),
    "no method": (["run=a", "budget=1pp", "methods=[shrink]"], "compress.methods"),
    "nothing smaller": (["run=a", "budget=1pp", "methods=[distill]"], "must include prune, factor"),
    "no target": (["run=a", "target.speed=2"], "target.speed is unknown; did you mean target.speedup"),
    "a target of 1": (["run=a", "target.speedup=1"], "target.speedup=1 must be above 1"),
    "no training": (["run=a", "budget=1pp", "training=0"], "training=0 must be positive"),
    "no threads": (["run=a", "budget=1pp", "threads=0"], "threads=0 must be an integer of at least 1"),
    "a word": (["run=a", "budget=1pp", "samples=many"], "compress.samples must be int"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_a_sentence_about_the_words(name: str):
    overrides, sentence = MISTAKES[name]
    with pytest.raises(UserError, match=sentence):
        parse_arguments(overrides)
