"""What an error says about a name that is not allowed."""

import difflib
import numbers
import os
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Any


def nearest(value: Any, allowed: Iterable[str], cutoff: float = 0.6) -> str:
    """Returns `" Did you mean 'digits'?"`, or "" if no name is similar.

    The leading space lets the hint follow the sentence that rejects `value`. A
    name is similar from `cutoff` on, which goes from 0 (any) to 1 (equal).
    """
    near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""


def difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """Names the classes that only one of two lists has, first ours.

    A name that differs from one of the others in blanks or in its Unicode form
    looks alike. Both are then written with escapes, and it is said.
    """
    alone = [name for name in ours if name not in theirs]
    others = [name for name in theirs if name not in ours]
    looks = {_look(name): name for name in others}
    for name in alone:
        if twin := looks.get(_look(name)):
            return (
                f"{name!a} and {twin!a}, which look alike: they "
                "differ in blanks, or in the Unicode form of a letter. Rename "
                "one of them"
            )
    if not alone and not others:
        return "the order of the names"
    few = [
        ", ".join(map(repr, names[:5])) or "none" for names in (alone, others)
    ]
    return f"only here {few[0]}; only there {few[1]}"


def _look(name: str) -> str:
    """Returns a name as it looks on a screen."""
    visible = (c for c in name if unicodedata.category(c) != "Cf")
    return "".join(unicodedata.normalize("NFKC", "".join(visible)).split())


def check_choice(name: str, value: Any, allowed: Collection[Any]) -> None:
    """Raises ValueError, naming the argument, unless `value` is allowed."""
    if value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(
            f"{name} must be one of {choices}. Received: {value!r}"
        )


def to_positive_int(name: str, value: Any) -> int:
    """Returns a positive integer, of NumPy too, or raises ValueError."""
    is_integer = isinstance(value, numbers.Integral)
    if not is_integer or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"{name} must be a positive integer. Received: {value!r}"
        )
    return int(value)


def check_number(name: str, value: Any) -> None:
    """Raises ValueError, naming the argument, unless it is a real number."""
    if not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be a number. Received: {value!r}")


def check_type(name: str, value: Any, kind: Any, wanted: str) -> None:
    """Raises ValueError, naming the argument, unless it is of a type.

    `wanted` names the type for people, "a Config" for example. A bool is no
    number.
    """
    is_wrong_bool = isinstance(value, bool) and kind is not bool
    if is_wrong_bool or not isinstance(value, kind):
        raise ValueError(f"{name} must be {wanted}. Received: {_short(value)}")


def check_path(name: str, value: Any) -> None:
    """Raises ValueError, naming the argument, unless it may be a path."""
    check_type(name, value, str | os.PathLike, "a path")
    path = os.fspath(value)
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError(f"{name} must be a path. Received: {value!r}")


def to_numbers(name: str, value: Any, wanted: str) -> Any:
    """Returns an array of real numbers, bfloat16 too, or raises ValueError.

    `wanted` names for people what is asked for.
    """
    import numpy as np  # --help does not wait for it

    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # rows of several lengths, for example
        array = np.asarray(None)
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise ValueError(f"{name} must be {wanted}. Received: {_short(value)}")
    return array


def _short(value: Any) -> str:
    """Returns the text of a value, in one line of a message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def is_shape(shape: Any) -> bool:
    """Whether it is a sequence of integers and None."""
    return isinstance(shape, tuple | list) and all(
        side is None or isinstance(side, numbers.Integral) for side in shape
    )
