"""The page with the options of all config groups, their descriptions and their defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from docs_pages.api import documented_names
from docs_pages.paths import CONF
from stormproof_train.config.choices import format_override, list_options
from stormproof_train.config.plan import RUN_ARGUMENTS
from stormproof_train.config.settings import SETTING_HELP
from stormproof_train.config.signature_binding import bind

PROJECTS = ("stormproof.", "stormproof_train.")
FORMS = {"activation": 1, "loss": 2, "augmentation": 2}
"""Number of tensors that a plain function takes, for groups that accept functions."""

HEAD = """\
# Configuration

`python train.py group=option group.argument=value` selects an option of a group and sets its arguments. The tables list
the options in `conf/`. The last column contains the arguments that a file sets and the defaults of Stormproof's own
classes. `python train.py optimizer=adamw --help` also prints the defaults of the classes of torch and Lightning.
`--config-dir my_configs` adds your own options.

## Settings

| setting | default | meaning |
|---|---|---|
"""


def config_page() -> str:
    """Returns the page."""
    defaults = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    rows = [
        f"| `{name}` | `{format_override(defaults[name])}` | {_cell(text)} |" for name, text in SETTING_HELP.items()
    ]
    groups = sorted(path.name for path in CONF.iterdir() if path.is_dir())
    return (
        HEAD + "\n".join([*rows, *(_section(group, RUN_ARGUMENTS.get(group, frozenset())) for group in groups)]) + "\n"
    )


def _section(group: str, provided: frozenset[str]) -> str:
    rows = []
    for option, description in list_options([CONF], group):
        entry = yaml.safe_load((CONF / group / f"{option}.yaml").read_text(encoding="utf-8")) or {}
        values = "<br>".join(_values(group, entry, provided))
        rows.append(f"| `{option}` | {_cell(description)} | {values} |".replace("|  |", "| |"))
    return "\n".join([f"\n## `{group}`\n", "| option | description | class, arguments |", "|---|---|---|", *rows])


def _values(group: str, entry: Mapping[str, Any], provided: frozenset[str], prefix: str = "") -> Iterator[str]:
    """Yields one line per class or group of values that an option sets."""
    target = entry.get("_target_")
    if target is not None:
        label = f"`{prefix[:-1]}`: " if prefix else ""
        yield f"{label}{_link(target)}"
        arguments = _arguments(group, entry, provided)
        if arguments:
            key = prefix if group == "experiment" else ""
            yield ", ".join(f"`{key}{argument}`" for argument in arguments)
        return
    for default in entry.get("defaults", ()):
        choices = default.items() if isinstance(default, dict) else [(group, default)]
        yield from (f"`{key.removeprefix('override /')}={value}`" for key, value in choices)
    for key, value in entry.items():
        if isinstance(value, dict):
            yield from _values(group, value, provided, f"{prefix}{key}.")
        elif key != "defaults":
            yield f"`{prefix}{key}={format_override(value)}`"


def _arguments(group: str, entry: Mapping[str, Any], provided: frozenset[str]) -> list[str]:
    given = {key: value for key, value in entry.items() if key != "_target_"}
    if not entry["_target_"].startswith(PROJECTS) or group in {"experiment", "trainer"}:
        return [f"{key}={format_override(value)}" for key, value in given.items() if not isinstance(value, dict)]
    target = bind(entry, group, provided, num_tensor_args=FORMS.get(group, 0), complete=False)
    required = [f"{name}=…" for name in target.missing_arguments()[target.is_function and FORMS[group] :]]
    defaults = {key: value for key, value in target.arguments().items() if key != "_target_"}
    return [*required, *(f"{key}={format_override(value)}" for key, value in defaults.items())]


def _link(target: str) -> str:
    name = target.rpartition(".")[2]
    documented = documented_names()
    return f"[`{name}`][{target}]" if target in documented else f"`{target}`"


def _cell(text: str) -> str:
    return re.sub(r"[|*\\]", r"\\\g<0>", text).replace("<", "&lt;")
