"""Lists of names with separators between them, as a user types them.

A name in which a separator stands is written in double quotes, "a,b", or the
separator with a backslash before it, a\\,b. So are quotes and backslashes that
mean themselves. Everything else is taken as it is.
"""

from keras_mixer.run.fields import ConfigError

RULE = (
    'A name with , or @ in it is written in double quotes: "a,b", '
    'folder:"/a@b"@train. The shell needs single quotes around them.'
)


def split(text: str, separator: str) -> list[str]:
    """Splits at separators outside of quotes, and keeps the quotes.

    Raises:
      ConfigError: A quote is not closed.
    """
    parts = [""]
    for character, is_literal, raw in _characters(text):
        if character == separator and not is_literal:
            parts.append("")
        else:
            parts[-1] += raw
    return parts


def unquote(text: str) -> str:
    """Returns what a part of `split` means, without blanks around it.

    Raises:
      ConfigError: A quote is not closed.
    """
    return "".join(character for character, _, _ in _characters(text.strip()))


def names(text: str, separator: str = ",") -> tuple[str, ...]:
    """Reads names with a separator between them.

    Raises:
      ConfigError: A quote is not closed.
    """
    return tuple(map(unquote, split(text, separator)))


def quote(name: str) -> str:
    """Writes a name so that `names` reads it, in quotes if it needs them."""
    if name == name.strip() and not any(c in name for c in ',@"\\'):
        return name
    return '"' + name.replace("\\", r"\\").replace('"', r"\"") + '"'


def _characters(text: str) -> list[tuple[str, bool, str]]:
    """Reads characters: what one means, whether it is literal, how written.

    A quote means nothing. It opens at the start of a name alone, behind a
    separator or a colon, so that 5" means itself.
    """
    found: list[tuple[str, bool, str]] = []
    quoted, position = False, 0
    while position < len(text):
        character = text[position]
        following = text[position + 1 : position + 2]
        before = text[:position].rstrip()[-1:]
        if character == "\\" and following and following in ',@"\\':
            found.append((following, True, character + following))
            position += 1
        elif character == '"' and (quoted or before in ("", ",", "@", ":")):
            quoted = not quoted
            found.append(("", True, character))
        else:
            found.append((character, quoted, character))
        position += 1
    if quoted:
        raise ConfigError(f"A quote is not closed in {text!r}. {RULE}")
    return found
