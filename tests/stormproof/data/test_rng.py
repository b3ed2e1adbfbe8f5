# ruff: noqa: NPY002 (NumPy's global generator is what is tested)
import io
import random
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stormproof.data.rng import (
    RandomStream,
    capture,
    capture_generators,
    find_attribute_generators,
    hash_key,
    restore,
    restore_generators,
    seed_process,
)


@pytest.fixture(autouse=True)
def _generators_as_they_were() -> Any:
    state = capture()
    yield
    restore(state)


def draw_all() -> list[float]:
    """An odd number of normals each: NumPy and Python keep the other half of the pair."""
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
        torch.rand(1).item(),
        torch.randn(1).item(),
    ]


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("drawn_before", range(3))
def test_what_is_drawn_after_a_restore_is_what_was_drawn_after_the_capture(drawn_before: int):
    for _ in range(drawn_before):
        draw_all()
    state = through_a_file(capture())
    first = draw_all() + draw_all()
    restore(state)
    assert draw_all() + draw_all() == first


@pytest.mark.parametrize("name", ["python", "numpy", "torch"])
def test_a_generator_that_a_state_does_not_hold_is_left_alone(name: str):
    state = capture()
    del state[name]
    saved_state = through_a_file(capture()[name] if draw_all() else None)
    restore(state)
    assert repr(capture()[name]) == repr(saved_state)


WITHOUT_NUMPY = """
import importlib, random, sys, types

class NoNumPy:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "numpy":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoNumPy())
from importlib.util import find_spec
package = types.ModuleType("stormproof")
package.__path__ = list(find_spec("stormproof").submodule_search_locations)
sys.modules["stormproof"] = package
from stormproof.data import rng
import torch
state = rng.capture()
rng.seed_process(1)
drawn = random.random(), torch.rand(1).item()
with rng.RandomStream(5):
    inside = random.random(), torch.rand(1).item()
rng.restore(state)
rng.seed_process(1)
assert drawn == (random.random(), torch.rand(1).item())
print(sorted(state), "numpy" in sys.modules)
"""


@pytest.mark.slow
def test_it_works_where_numpy_is_not_installed():
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_NUMPY], capture_output=True, text=True, timeout=100, check=False
    )
    assert result.stdout == "['python', 'torch'] False\n", result.stderr


def test_a_seed_fixes_all_three_and_they_differ():
    seed_process(1, 2, 3)
    first = draw_all()
    draw_all()
    seed_process(1, 2, 3)
    assert draw_all() == first
    assert len(set(first)) == len(first)


def test_numpy_and_torch_do_not_draw_the_same_numbers():
    seed_process(4)
    numpy_draws = np.random.randint(0, 2**31, 8)
    assert numpy_draws.tolist() != torch.randint(0, 2**31, (8,)).tolist()


def test_close_keys_have_streams_of_their_own():
    keys = [(), (0,), (0, 0), (1,), (0, 1), (1, 0), (-1,), (2**64,), (2**64 + 1,), (12, 3), (1, 23)]
    assert len({hash_key(*key) for key in keys}) == len(keys)
    streams = []
    for key in keys:
        seed_process(*key)
        streams += draw_all()
    assert len(set(streams)) == len(streams)


def test_an_isolated_stream_leaves_the_process_as_it_was():
    seed_process(9)
    draw_all()
    state = capture()
    expected = draw_all() + draw_all()
    restore(state)
    stream = RandomStream(3)
    with stream:
        draw_all()
    first = draw_all()
    with stream:
        draw_all()
    assert first + draw_all() == expected


def test_an_isolated_stream_goes_on_where_it_was_left():
    stream, whole = RandomStream(3), RandomStream(3)
    with stream:
        first = draw_all()
    draw_all()
    with stream:
        second = draw_all()
    with whole:
        assert first + second == draw_all() + draw_all()


def test_an_error_inside_a_stream_leaves_the_process_as_it_was_too():
    state = capture()
    with pytest.raises(ZeroDivisionError), RandomStream(3):
        sum(draw_all()) / 0
    assert repr(capture()) == repr(state)


@pytest.mark.parametrize("used", [0, 1, 2])
def test_an_isolated_stream_resumes_from_its_state(used: int):
    stream, fresh = RandomStream(3), RandomStream(4)
    for _ in range(used):
        with stream:
            draw_all()
    fresh.load_state_dict(through_a_file(stream.state_dict()))
    with stream:
        expected = draw_all() + draw_all()
    with fresh:
        assert draw_all() + draw_all() == expected


OWNED = {
    "torch": (lambda: torch.Generator().manual_seed(1), lambda g: torch.randn(3, generator=g).tolist()),
    "python": (lambda: random.Random(1), lambda g: [g.gauss(0, 1), g.random()]),
    "numpy": (lambda: np.random.default_rng(1), lambda g: g.normal(size=3).tolist()),
    "numpy, Philox": (lambda: np.random.Generator(np.random.Philox(1)), lambda g: g.integers(99, size=3).tolist()),
    "numpy, SFC64": (lambda: np.random.Generator(np.random.SFC64(1)), lambda g: g.integers(99, size=3).tolist()),
    "numpy, bare": (lambda: np.random.PCG64(1), lambda g: g.random_raw(3).tolist()),
    "numpy, old": (lambda: np.random.RandomState(1), lambda g: g.randn(3).tolist()),
}


@pytest.mark.parametrize(("make", "draw"), OWNED.values(), ids=OWNED.keys())
def test_a_generator_of_an_objects_own_is_found_and_restored_in_place(make: Any, draw: Any):
    owner = SimpleNamespace(size=3, source=make(), name="x", nothing=None)
    draw(owner.source)
    generator = owner.source
    assert find_attribute_generators(owner) == {"source": generator}
    state = through_a_file(capture_generators(owner))
    first = [draw(owner.source), draw(owner.source)]
    restore_generators(owner, state)
    assert owner.source is generator
    assert [draw(owner.source), draw(owner.source)] == first


@pytest.mark.parametrize("owner", [object(), 3, None, SimpleNamespace(source=random.SystemRandom())])
def test_what_has_no_generator_has_no_state(owner: object):
    assert find_attribute_generators(owner) == {}
    assert capture_generators(owner) == {}
    restore_generators(owner, {})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_every_gpu_in_use_is_restored():
    torch.rand(1, device="cuda")
    state = through_a_file(capture())
    first = torch.rand(3, device="cuda")
    restore(state)
    assert torch.equal(torch.rand(3, device="cuda"), first)
