import pytest

from keras_mixer.run import quoting
from keras_mixer.run.config import ConfigError


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("a, b", ("a", "b")),
        ('"a,b",c', ("a,b", "c")),
        (r"a\,b,c", ("a,b", "c")),
        (r"a\\,b", ("a\\", "b")),
        (r"C:\a\b", (r"C:\a\b",)),
        ('5",6"', ('5"', '6"')),
        (r"\"a\"", ('"a"',)),
        ('" a ",b', (" a ", "b")),
        ("it's,b", ("it's", "b")),
        ('folder:"/a,b"@train,c', ("folder:/a,b@train", "c")),
        ("???,${x}", ("???", "${x}")),
    ],
)
def test_names_with_separators_in_them(text, want):
    assert quoting.names(text) == want


def test_a_quote_that_is_not_closed():
    with pytest.raises(ConfigError, match=r"not closed in '\"a,b'"):
        quoting.names('"a,b')
