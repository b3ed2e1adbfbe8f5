"""Names of the components of a ledger for readers."""

from __future__ import annotations

from collections.abc import Iterable

NAMES = {
    "frozen": "set of frozen parameters",
    "mode": "training or evaluation mode",
    "hyperparameters": "optimizer hyperparameters",
    "learning_rate": "learning rate",
    "scaler": "gradient scaler",
    "parameters": "parameters",
    "buffers": "buffers (such as BatchNorm statistics)",
    "averaged": "averaged parameters (EMA)",
    "data/count": "number of batches per step",
    "data/indices": "data order",
    "data/batches": "batch contents",
    "rng/python": "Python random state",
    "rng/numpy": "NumPy random state",
    "rng/torch": "torch random state",
    "rng/cuda": "CUDA random state",
    "rng/generators/python": "`random.Random` objects",
    "rng/generators/numpy": "NumPy generator objects",
    "rng/generators/torch": "`torch.Generator` objects",
    "rng/workers": "DataLoader worker seeds",
    "loss": "loss",
    "gradients": "gradients",
    "length": "number of steps",
}
"""Names by component."""


def describe_component(component: str) -> str:
    """Returns the name of a component, such as ``optimizer (AdamW)``.

    Example:
        >>> describe_component("before/optimizer/AdamW")
        'optimizer (AdamW)'
        >>> describe_component("variables/train.best_loss")
        'variable `best_loss` of `train`'
    """
    name = component.removeprefix("before/")
    head, _, rest = name.partition("/")
    if head == "optimizer":
        return f"optimizer ({rest})" if rest else "optimizer"
    if head == "scheduler":
        return f"learning-rate scheduler ({rest})"
    if head == "variables":
        owner, _, variable = rest.rpartition(".")
        return f"variable `{variable}` of `{owner}`" if owner else f"variable `{variable}`"
    return NAMES.get(name, name)


def describe_components(components: Iterable[str], limit: int = 12) -> str:
    """Returns the names of components, separated by commas."""
    names = list(dict.fromkeys(map(describe_component, components)))
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
