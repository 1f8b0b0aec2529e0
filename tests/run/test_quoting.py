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


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("cats", "cats"),
        ("two words", "two words"),
        ("a,b", '"a,b"'),
        (" a", '" a"'),
        ("a@b", '"a@b"'),
        ('5"', r'"5\""'),
        ("a\\", r'"a\\"'),
        ("", ""),
    ],
)
def test_names_are_quoted_if_they_need_it(name, want):
    assert quoting.quote(name) == want
    assert quoting.names(f"{quoting.quote(name)},x") == (name, "x")


def test_a_quote_that_is_not_closed():
    with pytest.raises(ConfigError, match=r"not closed in '\"a,b'"):
        quoting.names('"a,b')
