"""Reads, changes, resolves and saves the config of a run.

A recipe (recipes.py) returns a `Config`. Overrides such as `optim.lr=3e-3`
change single fields. `resolve` turns epochs into steps once the size of the
data set is known. The resolved config lies in the workdir as `config.json`;
a new run can start from that file. OmegaConf checks names and types, fields.py
checks values.
"""

import dataclasses
import functools
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import omegaconf
import yaml
from omegaconf import OmegaConf

from keras_mixer.run import files, suggest
from keras_mixer.run.fields import (
    DURATIONS,
    SECTIONS,
    Config as Config,
    ConfigError as ConfigError,
)

# OmegaConf gives ${...} and ??? a meaning, which texts of users do not have.
# They pass it with letters in their place that nobody types.
_HIDE = str.maketrans("$?", "\ue000\ue001")
_SHOW = str.maketrans("\ue000\ue001", "$?")
# Of train.log_every=null: training lines of a run, and steps between them.
_LINES = 20
_MAX_LOG_EVERY = 50


def override(config: Config, overrides: Sequence[str]) -> Config:
    """Returns `config` with fields replaced, `section.field=value` each.

    A duration in steps replaces the recipe's duration in epochs, and the other
    way round.

    Raises:
      ConfigError: A field is unknown (the error names the nearest), or a value
        has the wrong type or is not allowed.
    """
    require_config(config)
    is_list = isinstance(overrides, list | tuple)
    if not is_list or not all(isinstance(text, str) for text in overrides):
        raise ConfigError(
            "overrides must be a list of texts, such as ['optim.lr=3e-3']. "
            f"Received: {overrides!r}"
        )
    if not overrides:  # a merge takes a twentieth of a second
        return config
    changes = OmegaConf.create()
    try:
        values = dict(map(_parse, overrides))
        for section, steps, epochs in DURATIONS:
            both = {f"{section}.{steps}", f"{section}.{epochs}"}
            if len(both & values.keys()) == 1:
                values |= dict.fromkeys(both - values.keys())
        for field, value in values.items():
            OmegaConf.update(changes, field, value)
        return _merge(config, changes)
    except omegaconf.errors.OmegaConfBaseException as error:
        raise ConfigError(_explain(error)) from error


def require_config(config: Any) -> None:
    """Raises ValueError for what is no `Config`."""
    wanted = "a Config, which a recipe or config.load returns"
    suggest.check_type("config", config, Config, wanted)


@functools.cache
def _schema() -> Any:
    """Returns the types and defaults, which nobody changes."""
    return OmegaConf.structured(Config)


def _merge(config: Config, changes: Any) -> Config:
    """Returns `config` with what OmegaConf read, checked and typed."""
    known = _translate(dataclasses.asdict(config), _HIDE)
    merged = OmegaConf.merge(_schema(), known, changes)
    values = _translate(OmegaConf.to_container(merged), _SHOW)
    sections = {name: kind(**values[name]) for name, kind in SECTIONS.items()}
    return Config(recipe=values["recipe"], **sections)


def _translate(values: Any, table: dict[int, int]) -> Any:
    """Returns nested values whose texts are translated."""
    if isinstance(values, dict):
        return {key: _translate(x, table) for key, x in values.items()}
    return values.translate(table) if isinstance(values, str) else values


def _parse(text: str) -> tuple[str, Any]:
    """Reads `section.field=value`; text fields take their text as it is."""
    field, equals, value = text.partition("=")
    section, _, name = field.partition(".")
    if field in SECTIONS and equals:
        raise ConfigError(
            f"{field} is a section. Set one of its fields: "
            + ", ".join(_field_names(field))
        )
    if equals and not name and (homes := _fields_named(section)):
        raise ConfigError(
            f"{section} needs its section. Did you mean "
            + " or ".join(f"{found}={value}" for found in homes)
            + "?"
        )
    if not equals or not name:
        raise ConfigError(
            f"Cannot read {text!r}: an override is section.field=value, "
            "for example optim.lr=3e-3"
        )
    if section not in SECTIONS:
        raise ConfigError(_unknown(section))
    if field not in _field_names(section):
        raise ConfigError(_unknown(field))
    for known in dataclasses.fields(SECTIONS[section]):
        if known.name == name and known.type in (str, str | None):
            text = value.translate(_HIDE)
            return field, None if value == "null" else text
    try:
        parsed = OmegaConf.from_dotlist([f"v={value.translate(_HIDE)}"])
        return field, OmegaConf.select(parsed, "v")
    except yaml.YAMLError as error:
        raise ConfigError(f"{field}: cannot read {value!r}") from error


def _field_names(section: str) -> list[str]:
    """Returns "section.field" of each field of a section."""
    fields = dataclasses.fields(SECTIONS[section])
    return [f"{section}.{field.name}" for field in fields]


def _fields_named(name: str) -> list[str]:
    """Returns "section.field" of each field of this name, in any section."""
    every = [field for section in SECTIONS for field in _field_names(section)]
    return [field for field in every if field.partition(".")[2] == name]


def _explain(error: omegaconf.errors.OmegaConfBaseException) -> str:
    """Rewrites an OmegaConf error for people who have not read its manual."""
    message = str(error).splitlines()[0].translate(_SHOW)
    name = str(getattr(error, "full_key", "") or "").translate(_SHOW)
    if not isinstance(error, omegaconf.errors.ConfigKeyError):
        return f"{name}: {message}" if name else message
    return _unknown(name)


def _unknown(name: str) -> str:
    """Says that a field does not exist, and which ones do."""
    section = name.partition(".")[0]
    known = _field_names(section) if section in SECTIONS else list(SECTIONS)
    # The section that the names share makes all of them similar.
    hint = suggest.nearest(name, known, cutoff=0.8)
    if elsewhere := _fields_named(name.rpartition(".")[2]):
        hint = f" Did you mean {' or '.join(map(repr, elsewhere))}?"
    return f"Unknown field {name!r}.{hint} Fields: {', '.join(known)}"


def resolve(config: Config, *, num_examples: int) -> Config:
    """Returns `config` with every duration in steps, and `train.log_every`.

    An epoch is `num_examples / train.batch_size` steps. A warm-up that is as
    long as the run is cut to a tenth of it, so that a recipe can be tried for a
    few steps.

    Raises:
      ConfigError: The run has no length.
    """
    suggest.to_positive_int("num_examples", num_examples)
    if config.train.steps is None and config.train.epochs is None:
        raise ConfigError("Give the length of the run: train.epochs=<number>")
    steps_per_epoch = num_examples / config.train.batch_size
    for section, steps, epochs in DURATIONS:
        values = getattr(config, section)
        passes = getattr(values, epochs)
        if passes is None:
            continue
        length = passes * steps_per_epoch
        if length >= 2**31:
            raise ConfigError(
                f"{section}.{epochs}={passes:g} is {length:g} updates, and up "
                "to 2**31 - 1 are allowed. Take fewer epochs or larger batches."
            )
        updates = round(length)
        if section != "optim":  # a warm-up may be empty
            updates = max(updates, 1)
        values = dataclasses.replace(values, **{steps: updates, epochs: None})
        config = dataclasses.replace(config, **{section: values})
    train, optim = config.train, config.optim
    total = train.total_steps
    if (optim.warmup_steps or 0) >= total:
        optim = dataclasses.replace(optim, warmup_steps=total // 10)
    if train.log_every is None:
        often = min(max(total // _LINES, 1), _MAX_LOG_EVERY)
        train = dataclasses.replace(train, log_every=often)
    return dataclasses.replace(config, train=train, optim=optim)


def save(config: Config, path: str | os.PathLike[str]) -> None:
    """Writes `config` as JSON, for `load`."""
    files.write_json(path, dataclasses.asdict(config))


def load(path: str | os.PathLike[str]) -> Config:
    """Reads a config that `save` wrote (JSON) or a person did (YAML).

    Raises:
      ConfigError: The file is missing, cannot be parsed, or has a field or
        value that is not allowed.
    """
    try:
        text = pathlib.Path(files.expand(path)).read_text(encoding="utf-8")
        if not text.strip():
            raise ConfigError("The file is empty.")
        return _merge(Config(), _read_sections(text))
    except FileNotFoundError as error:
        raise ConfigError(f"There is no config file {path}") from error
    except omegaconf.errors.OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_explain(error)}") from error
    except yaml.MarkedYAMLError as error:  # JSON is YAML, too
        mark, place = error.problem_mark, ""
        if mark is not None:
            place = f"line {mark.line + 1}, column {mark.column + 1}: "
        raise ConfigError(
            f"Cannot read {path}: {place}{error.problem}"
        ) from error
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"Cannot read {path}: {error}") from error
    except RecursionError as error:
        raise ConfigError(
            f"Cannot read {path}: it is nested too deep"
        ) from error


def _to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError for a key that comes twice; YAML's error names it."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError
    return found


def _read_sections(text: str) -> Any:
    """Returns the sections in a JSON or YAML text."""
    try:
        # YAML has no pairs of \u, with which JSON writes an emoji.
        found = json.loads(text, object_pairs_hook=_to_dict)
        values = _translate(found, _HIDE)
    except ValueError:
        values = text.translate(_HIDE)
    try:
        found = OmegaConf.create(values)
    except (AssertionError, omegaconf.errors.ValidationError):
        found = None  # a number, a date, a truth value
    if not isinstance(found, omegaconf.DictConfig):
        raise ConfigError(
            "A config is a map of sections: " + ", ".join(SECTIONS)
        )
    return found


def differences(ours: Config, theirs: Config) -> list[str]:
    """Names the fields in which two configs differ, one line each."""
    lines = []
    for section, owner in SECTIONS.items():
        for field in dataclasses.fields(owner):
            x = getattr(getattr(ours, section), field.name)
            y = getattr(getattr(theirs, section), field.name)
            if x != y:
                lines.append(f"{section}.{field.name}: {y!r} -> {x!r}")
    return lines


def describe(config: Config) -> str:
    """Returns `config` as YAML, for people."""
    return OmegaConf.to_yaml(OmegaConf.structured(config)).rstrip()


def field_help(*sections: str) -> str:
    """Returns a table of fields, of all sections if none is named."""
    lines = []
    for section in sections or SECTIONS:
        owner = SECTIONS[section]
        # Under python -OO a dataclass has its signature as docstring.
        lines.append(
            section if sys.flags.optimize > 1 else f"{section}: {owner.__doc__}"
        )
        for field in dataclasses.fields(owner):
            default = "null" if field.default is None else field.default
            name = f"{section}.{field.name}={default}"
            lines.append(f"  {name:<36} {field.metadata['help']}")
    return "\n".join(lines)
