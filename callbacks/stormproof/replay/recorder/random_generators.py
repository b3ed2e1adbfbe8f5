"""Hashes the states of random number generators."""

from __future__ import annotations

import array
import ctypes
import random
import sys
from collections.abc import Iterable
from typing import Any

import torch

from stormproof.replay.recorder.hashing import hash_value, new_digest
from stormproof.user_objects import defines, is_a

_MT19937_BYTES = 625 * 4  # 624 words of the state and the position


def hash_global_generators() -> dict[str, str]:
    """Returns the components ``rng/python``, ``rng/torch``, ``rng/numpy`` if imported, and ``rng/cuda`` if used."""
    components = {"rng/python": _hash_python(random.getstate()), "rng/torch": _hash_torch(torch.default_generator)}
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and "numpy.random" in sys.modules:
        components["rng/numpy"] = _hash_bit_generator(numpy.random.mtrand._rand._bit_generator)
    if torch.cuda.is_initialized():
        components["rng/cuda"] = hash_value([state.cpu() for state in torch.cuda.get_rng_state_all()])
    return components


def is_generator(value: object) -> bool:
    """Returns whether ``value`` is a generator of torch, NumPy or Python."""
    return is_a(value, torch.Generator | random.Random) or (
        type(value).__module__.startswith("numpy.random")
        and defines(value, "bit_generator" if _is_new(value) else "_bit_generator")
    )


def _is_new(value: object) -> bool:
    return type(value).__name__ == "Generator"


def hash_generators(generators: Iterable[Any]) -> dict[str, str]:
    """Returns the components ``rng/generators/…``: for each library, the hash of the states of its generators."""
    hashes: dict[str, list[str]] = {}
    for generator in generators:
        library, state = _hash_generator(generator)
        hashes.setdefault(library, []).append(state)
    return {f"rng/generators/{library}": hash_value(states) for library, states in hashes.items()}


def _hash_generator(generator: Any) -> tuple[str, str]:
    """Returns the library and the hash of the state of a generator for which :func:`is_generator` is true."""
    if is_a(generator, torch.Generator):
        return "torch", _hash_torch(generator)
    if is_a(generator, random.Random):
        return "python", _hash_python(random.Random.getstate(generator))
    bit_generator = generator.bit_generator if _is_new(generator) else generator._bit_generator
    return "numpy", _hash_bit_generator(bit_generator)


def _hash_python(state: tuple[Any, ...]) -> str:
    version, words, gauss_next = state
    digest = new_digest()
    digest.update(array.array("Q", words))
    digest.update(f"{version}{gauss_next!r}".encode())
    return digest.hexdigest()


def _hash_torch(generator: torch.Generator) -> str:
    digest = new_digest()
    state = generator.get_state()
    digest.update((ctypes.c_char * state.nbytes).from_address(state.data_ptr()))
    return digest.hexdigest()


def _hash_bit_generator(bit_generator: Any) -> str:
    """Reads a Mersenne twister in memory, since ``state`` takes 50 µs.

    The memory lacks the spare normal deviate, which only the legacy functions of NumPy keep.
    """
    if type(bit_generator).__name__ != "MT19937":
        return hash_value(bit_generator.state)
    digest = new_digest()
    digest.update((ctypes.c_char * _MT19937_BYTES).from_address(bit_generator.ctypes.state_address))
    return digest.hexdigest()
