import pytest

from keras_mixer.run import suggest


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (["a", "b"], ["a", "c"], "only here 'b'; only there 'c'"),
        (["a"], ["a", "c"], "only here none; only there 'c'"),
        (["a", "b"], ["b", "a"], "the order of the names"),
        (["tea "], ["tea"], "'tea ' and 'tea', which look alike"),
        (["caf\u00e9"], ["cafe\u0301"], r"'caf\xe9' and 'cafe\u0301', which"),
        (["tea\u200b"], ["tea"], r"'tea\u200b' and 'tea', which look alike"),
    ],
)
def test_lists_of_names_say_in_what_they_differ(ours, theirs, message):
    assert message in suggest.difference(ours, theirs)
