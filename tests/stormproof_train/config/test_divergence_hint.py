import pytest

from stormproof.errors import DivergedError
from stormproof_train.config.advice import add_divergence_hint, grows_quadratically
from tests.support.hydra_configs import build_activation, compose_plan, list_activations


@pytest.mark.slow
def test_gated_units_and_squared_relu_are_of_the_second_degree():
    activations = {word for word in list_activations() if grows_quadratically(build_activation(word))}
    assert activations == {"reglu", "geglu", "swiglu", "bilinear", "squared_relu"}  # glu's gate is at most 1


SENTENCES = {
    "a gated unit without a norm": (
        ["activation=swiglu"],
        r"lower it; before that, add a norm to the model \(model.norm=",
    ),
    "a gated unit with a norm": (["activation=swiglu", "++model.norm=layer"], "lower it$"),
    "a model that has always a norm": (["activation=swiglu", "model=resnet"], "lower it$"),
    "an activation that grows like its input": (["activation=relu"], "lower it$"),
    "a number of features of its own": (["activation=prelu", "++activation.num_parameters=7"], "lower it$"),
}


@pytest.mark.parametrize(("words", "sentence"), SENTENCES.values(), ids=SENTENCES.keys())
def test_a_diverged_training_is_told_that_its_model_lacks_a_norm(words: list[str], sentence: str):
    with pytest.raises(DivergedError, match=sentence), add_divergence_hint(compose_plan(*words)):
        raise DivergedError("lower it")
