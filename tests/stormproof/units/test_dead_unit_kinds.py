import pytest
import torch
from torch import nn

from stormproof.units.dead_unit_kinds import count_kinds, saturation_bounds


@pytest.mark.parametrize(
    ("function", "module", "limits"),
    [
        ("relu", nn.ReLU(), (None, None)),
        ("sigmoid", nn.Sigmoid(), (0.0, 1.0)),
        ("special_expit", nn.Linear(1, 1), (0.0, 1.0)),
        ("tanh", nn.Tanh(), (-1.0, 1.0)),
        ("lstm", nn.LSTM(1, 1), (-1.0, 1.0)),
        ("relu6", nn.ReLU6(), (None, 6.0)),
        ("elu", nn.ELU(0.5), (-0.5, None)),
        ("elu", nn.Linear(1, 1), (-1.0, None)),
        ("celu", nn.CELU(2.0), (-2.0, None)),
        ("hardtanh", nn.Hardtanh(-0.1, 0.3), (-0.1, 0.3)),
        ("hardtanh", nn.Linear(1, 1), (-1.0, 1.0)),
        ("something", nn.Identity(), (None, None)),
    ],
)
def test_an_activation_saturates_where_its_formula_does(
    function: str, module: nn.Module, limits: tuple[float | None, float | None]
):
    assert saturation_bounds(function, module) == limits


@pytest.mark.parametrize(
    "module", [nn.Sigmoid(), nn.Tanh(), nn.ELU(0.7), nn.CELU(0.7), nn.SELU(), nn.ReLU6(), nn.Hardsigmoid()]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_said_to_saturate_is_what_torch_computes(module: nn.Module, dtype: torch.dtype):
    limits = saturation_bounds(type(module).__name__.lower(), module)
    low, high = module(torch.tensor([-1000.0, 1000.0], dtype=dtype)).tolist()
    if limits[0] is not None:
        assert count_kinds([low], limits) == {"saturated low": 1}
    if limits[1] is not None:
        assert count_kinds([high], limits) == {"saturated high": 1}


@pytest.mark.parametrize(
    ("value", "limits", "kind"),
    [
        (0.0, (None, None), "zero"),
        (-0.0, (None, None), "zero"),
        (0.0, (0.0, 1.0), "saturated low"),
        (1.0, (0.0, 1.0), "saturated high"),
        (0.5, (0.0, 1.0), "constant"),
        (0.0, (-1.0, 1.0), "zero"),
        (-0.999, (-1.0, 1.0), "constant"),
        (1e-9, (0.0, 1.0), "constant"),
        (float(torch.tensor(0.3)), (-0.3, 0.3), "saturated high"),
        (float(torch.tensor(-0.3)), (-0.3, 0.3), "saturated low"),
        (float("inf"), (None, None), "constant"),
        (float("inf"), (-1.0, 1.0), "constant"),
    ],
)
def test_one_value_is_of_one_kind(value: float, limits: tuple[float | None, float | None], kind: str):
    assert count_kinds([value, value], limits) == {kind: 2}


def test_none_are_of_no_kind():
    assert count_kinds([], (0.0, 1.0)) == {}
