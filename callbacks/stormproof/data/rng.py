"""Captures, restores, seeds and separates random number generators.

All states consist of plain values and tensors, so that ``torch.load(weights_only=True)`` accepts a checkpoint that
contains them. NumPy is included only if it is imported, and GPUs only if CUDA is initialized.
"""

from __future__ import annotations

import importlib
import random
import sys
from hashlib import blake2b
from types import TracebackType
from typing import Any

import torch

State = dict[str, Any]


def capture() -> State:
    """Returns the states of the global generators of Python, NumPy (if imported), and torch on the CPU and all GPUs.

    Example:
        >>> state = capture()
        >>> before = random.random(), torch.rand(1)
        >>> restore(state)
        >>> before == (random.random(), torch.rand(1))
        True
    """
    state: State = {"python": _to_plain(random.getstate()), "torch": torch.default_generator.get_state()}
    if "numpy" in sys.modules:
        state["numpy"] = _to_plain(sys.modules["numpy"].random.get_state(legacy=False))
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore(state: State) -> None:
    """Restores the global generators. A generator that is not in ``state`` stays unchanged.

    Args:
        state: From :func:`capture`. The states of GPUs are ignored without a GPU.

    Raises:
        RuntimeError: If ``state`` contains more GPUs than torch can use.
    """
    if "python" in state:
        random.setstate(_to_python_state(state["python"]))
    if "torch" in state:
        torch.default_generator.set_state(state["torch"])
    if "numpy" in state:
        importlib.import_module("numpy").random.set_state(_from_plain(state["numpy"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def hash_key(*key: int) -> bytes:
    """Returns a 16-byte hash of the numbers in ``key`` and their order.

    Example:
        >>> hash_key(1, 23) == hash_key(12, 3)
        False
    """
    return blake2b(repr(key).encode(), digest_size=16).digest()


def seed_process(*key: int) -> None:
    """Seeds Python, NumPy (if imported) and torch on the CPU with a hash of ``key``. Takes 9 µs with all three.

    NumPy and torch get different bits of the hash, because both draw the same numbers from the same seed. Generators of
    GPUs stay unchanged.

    Args:
        key: Integers of any size, such as (seed, epoch, position).

    Example:
        >>> seed_process(0, 1, 2)
        >>> one = torch.rand(1)
        >>> seed_process(0, 1, 2)
        >>> one == torch.rand(1)
        tensor([True])
    """
    digest = hash_key(*key)
    random.seed(int.from_bytes(digest, "little"))
    torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little"))
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(int.from_bytes(digest[8:12], "little"))


class ForkedRng:
    """Restores the global generators on exit, like ``torch.random.fork_rng``.

    Example:
        >>> state = capture()
        >>> with ForkedRng():
        ...     seed_process(1)
        >>> capture()["python"] == state["python"]
        True
    """

    def __enter__(self) -> None:
        self._process_state = RngState()

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process_state.restore()


class RandomStream:
    """Separate random stream. Inside ``with stream:``, the global generators draw from it. On exit they are restored.

    Args:
        key: Integers that seed the stream, as for :func:`seed_process`.

    Example:
        >>> stream = RandomStream(0, 7)
        >>> with stream:
        ...     first = random.random()
        >>> with stream:
        ...     second = random.random()
        >>> with RandomStream(0, 7):
        ...     [first, second] == [random.random(), random.random()]
        True
    """

    def __init__(self, *key: int) -> None:
        self._key = key
        self._stream_state: RngState | None = None
        self._process_state: RngState | None = None

    def __enter__(self) -> None:
        self._process_state = RngState()
        if self._stream_state is None:
            seed_process(*self._key)
        else:
            self._stream_state.restore()

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process_state is not None
        self._stream_state = RngState()
        self._process_state.restore()
        self._process_state = None

    def state_dict(self) -> State:
        """Returns the state of the stream, as plain values and tensors."""
        stream_state = None if self._stream_state is None else self._stream_state.to_plain()
        return {"key": list(self._key), "state": stream_state}

    def load_state_dict(self, state: State) -> None:
        """Restores a state from :meth:`state_dict`."""
        self._key = tuple(state["key"])
        self._stream_state = None if state["state"] is None else RngState.from_plain(state["state"])


class RngState:
    """Global generators of the process at the time of creation, as in :func:`capture` without GPUs.

    Saves the formats of the libraries, which is faster than plain values.

    Example:
        >>> state = RngState()
        >>> before = random.random()
        >>> state.restore()
        >>> before == random.random()
        True
    """

    def __init__(self) -> None:
        self._python = random.getstate()
        self._torch = torch.default_generator.get_state()
        self._numpy: Any = None
        if "numpy" in sys.modules:
            self._numpy = sys.modules["numpy"].random.get_state(legacy=False)
            numpy_state = self._numpy["state"]
            if "key" in numpy_state:
                numpy_state["key"] = numpy_state["key"].tolist()  # setting a list takes 3 µs, an array 77 µs

    def restore(self) -> None:
        """Restores the generators."""
        random.setstate(self._python)
        torch.default_generator.set_state(self._torch)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)

    def to_plain(self) -> State:
        """Returns the state as plain values and tensors."""
        return {"python": _to_plain(self._python), "torch": self._torch, "numpy": _to_plain(self._numpy)}

    @classmethod
    def from_plain(cls, state: State) -> RngState:
        """Reverts :meth:`to_plain`."""
        rng_state = cls()
        rng_state._python = _to_python_state(state["python"])
        rng_state._torch = state["torch"]
        rng_state._numpy = None if state["numpy"] is None else _from_plain(state["numpy"])
        return rng_state


def find_attribute_generators(owner: object) -> dict[str, Any]:
    """Returns the generators of torch, NumPy and Python in the attributes of ``owner``, by name.

    Example:
        >>> from types import SimpleNamespace
        >>> find_attribute_generators(SimpleNamespace(rng=random.Random(3), size=2)).keys()
        dict_keys(['rng'])
    """
    return {name: value for name, value in getattr(owner, "__dict__", {}).items() if is_generator(value)}


def capture_generators(owner: object) -> State:
    """Returns the states of ``find_attribute_generators(owner)`` by name, as plain values and tensors.

    Example:
        >>> from types import SimpleNamespace
        >>> owner = SimpleNamespace(rng=random.Random(3))
        >>> state = capture_generators(owner)
        >>> before = owner.rng.random()
        >>> restore_generators(owner, state)
        >>> before == owner.rng.random()
        True
    """
    return {name: get_state(generator) for name, generator in find_attribute_generators(owner).items()}


def restore_generators(owner: object, state: State) -> None:
    """Restores the generators of ``owner`` in place, so that objects that share a generator are restored, too.

    Raises:
        KeyError: If ``owner`` lacks a generator that is in ``state``.
    """
    generators = find_attribute_generators(owner)
    for name, value in state.items():
        set_state(generators[name], value)


def is_generator(value: object) -> bool:
    """Returns whether ``value`` is a random number generator of torch, NumPy or Python with a state."""
    value_type = type(value)  # a proxy or a mock may have another `__class__`
    if issubclass(value_type, torch.Generator | random.Random):
        return not issubclass(value_type, random.SystemRandom)
    if "numpy" not in sys.modules:
        return False
    numpy_random = sys.modules["numpy"].random
    return issubclass(value_type, numpy_random.Generator | numpy_random.RandomState | numpy_random.BitGenerator)


def get_state(generator: Any) -> Any:
    """Returns the state of one generator, as plain values and tensors."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return _to_plain(generator.getstate())
    if hasattr(generator, "get_state"):  # numpy.random.RandomState, which also caches a normal variate
        return _to_plain(generator.get_state(legacy=False))
    return _to_plain(getattr(generator, "bit_generator", generator).state)


def seed_generator(generator: Any, *key: int) -> None:
    """Seeds one generator with a hash of ``key``, in place. Takes 2 to 20 µs."""
    number = int.from_bytes(hash_key(*key), "little")
    if isinstance(generator, torch.Generator):
        generator.manual_seed(number % 2**64)
    elif hasattr(generator, "seed"):  # random.Random and numpy.random.RandomState, which accepts 32 bits
        generator.seed(number % 2**32)
    else:
        bit_generator = getattr(generator, "bit_generator", generator)
        bit_generator.state = type(bit_generator)(number).state


def set_state(generator: Any, state: Any) -> None:
    """Sets one generator to a state from :func:`get_state`, in place."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(_to_python_state(state))
    elif hasattr(generator, "set_state"):
        generator.set_state(_from_plain(state))
    else:
        getattr(generator, "bit_generator", generator).state = _from_plain(state)


def _to_python_state(plain_state: list[Any]) -> tuple[Any, ...]:
    version, words, gauss = plain_state
    return version, tuple(words), gauss


def _to_plain(value: Any) -> Any:
    """Converts tuples, arrays and NumPy scalars to plain values. An array becomes a dict of dtype and numbers."""
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_to_plain(item) for item in value]
    if hasattr(value, "dtype"):
        return {"dtype": value.dtype.name, "numbers": value.tolist()} if value.ndim else value.item()
    return value


def _from_plain(value: Any) -> Any:
    """Reverts :func:`_to_plain`, for NumPy."""
    if isinstance(value, dict) and value.keys() == {"dtype", "numbers"}:
        return importlib.import_module("numpy").array(value["numbers"], dtype=value["dtype"])
    if isinstance(value, dict):
        return {key: _from_plain(item) for key, item in value.items()}
    return value
