"""What a plugin lets its user set with `--sync-opt NAME=VALUE` and the like: declared, then checked and converted."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from orch_core.contracts.errors import PluginError

OptionValue: TypeAlias = str | int | float | bool

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_WANTED = {str: "a text", int: "an integer", float: "a number", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Option:
    """One option. Declared by the hook ``orch_add_options``; the factory hook gets the converted value by `name`."""

    name: str  # people may write dashes as underscores
    type: type[str] | type[int] | type[float] | type[bool]
    default: OptionValue
    help: str
    choices: tuple[OptionValue, ...] = ()  # empty: anything of the type


def convert(owner: str, declared: Sequence[Option], given: Mapping[str, str]) -> dict[str, OptionValue]:
    """Texts from a command line -> values, with the defaults filled in. `owner`, as in "sync plugin 'topk'".

    Raises PluginError, one sentence with the wrong key or value.
    """
    by_name = {_dashed(option.name): option for option in declared}
    values = {option.name: option.default for option in declared}
    for key, text in given.items():
        option = by_name.get(_dashed(key))
        if option is None:
            raise PluginError(_unknown(owner, key, sorted(by_name)))
        values[option.name] = _value(owner, option, text)
    return values


def _value(owner: str, option: Option, text: str) -> OptionValue:
    try:
        value = _boolean(text) if option.type is bool else option.type(text)
    except ValueError as error:
        raise PluginError(
            f"option {option.name} of the {owner} should be {_WANTED[option.type]}, not {text!r}"
        ) from error
    if option.choices and value not in option.choices:
        allowed = ", ".join(map(str, option.choices))
        raise PluginError(f"option {option.name} of the {owner} should be one of {allowed}, not {text!r}")
    return value


def _boolean(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError(text)
    return text.lower() in _TRUE


def _unknown(owner: str, key: str, known: Sequence[str]) -> str:
    if not known:
        return f"the {owner} has no options, so {key!r} means nothing to it"
    near = difflib.get_close_matches(_dashed(key), known, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
    return f"the {owner} has no option {key!r}; {guess}"


def _dashed(name: str) -> str:
    return name.replace("_", "-")
