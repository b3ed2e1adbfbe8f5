"""Records the scalar on which ``backward`` is called."""

from __future__ import annotations

import functools
from typing import Any

import torch

from stormproof.replay.recorder.session import Session


def install(session: Session) -> None:
    """Wraps ``torch.autograd.backward``, which ``Tensor.backward`` calls."""
    original = torch.autograd.backward

    @functools.wraps(original)
    def backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
        with session.writer.guard("backward"):
            if isinstance(tensors, torch.Tensor) and tensors.numel() == 1:
                session.last_loss = tensors.detach()
        original(tensors, *args, **kwargs)

    torch.autograd.backward = backward


def take(session: Session) -> str | None:
    """Returns the last loss since the last step as text, or None without one."""
    loss, session.last_loss = session.last_loss, None
    return None if loss is None or loss.device.type == "meta" else repr(loss.item())
