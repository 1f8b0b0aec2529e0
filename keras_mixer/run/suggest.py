"""The hint of an error: which allowed value was probably meant."""

import difflib
from collections.abc import Iterable


def nearest(value: object, allowed: Iterable[str], cutoff: float = 0.6) -> str:
    """Returns `" Did you mean 'digits'?"`, or "" if no name is similar.

    The leading space lets the hint follow the sentence that rejects `value`.

    Args:
      value: The value that is not allowed.
      allowed: The names that are.
      cutoff: The similarity that a name must have, from 0 (any) to 1 (equal).
    """
    near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""
