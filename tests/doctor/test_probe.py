"""How processes end that the doctor asks."""

import sys

import pytest

from keras_mixer.doctor import probe


@pytest.mark.parametrize(
    ("code", "ended", "said"),
    [
        ("print('{\"a\": 1}')", None, {"a": 1}),
        ("print('noise')\nprint('{\"a\": 1}')", None, {"a": 1}),
        ("import os; os.abort()", "aborts (SIGABRT)", {}),
        ("import os; os.kill(os.getpid(), 11)", "dies (SIGSEGV)", {}),
        ("raise SystemExit(3)", "fails (exit status 3)", {}),
        ("print('noise')", "says nothing", {}),
        ("import time; time.sleep(60)", "has not ended after 2 s", {}),
    ],
)
def test_how_a_process_ends(code, ended, said):
    answer = probe.ask([sys.executable, "-c", code], 2, {})
    assert (answer.ended, answer.said) == (ended, said)


@pytest.mark.parametrize("ending", ["sys.exit(1)", "time.sleep(60)"])
def test_last_words(ending):
    code = f"""import sys, time
print("one\\n\\ntwo\\nthree", file=sys.stderr, flush=True)
{ending}"""
    answer = probe.ask([sys.executable, "-c", code], 2, {})
    assert answer.words == "two | three"
    assert answer.last_words() == ". Its last words: two | three"


def test_variables_are_added():
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    answer = probe.ask([sys.executable, "-c", code], 60, {"OURS": "1"})
    assert answer.said["OURS"] == "1"
    assert "TF_CPP_MIN_LOG_LEVEL" in answer.said
    assert answer.last_words() == ""
