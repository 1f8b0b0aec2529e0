"""What importing TensorFlow may say."""

import os
import subprocess
import sys

from tests.conftest import ROOT

# In place of TensorFlow, which takes seconds.
_SPEAKER = """
import os
os.write(2, b'WARNING: All log messages before absl::InitializeLog()\\n')
os.write(2, b'I0000 00:00:1 port.cc:153] oneDNN custom operations are on\\n')
os.write(2, b'E0000 00:00:1 cuda.cc:51] no kernel image\\n')
{end}
"""


def start(tmp_path, end="", **options):
    (tmp_path / "tensorflow.py").write_text(_SPEAKER.format(end=end))
    code = (
        "import sys; from keras_mixer.programs import quiet\n"
        "quiet.import_tensorflow()\n"
        "print('afterwards', file=sys.stderr)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        start_new_session=True,
        stderr=subprocess.PIPE,
        **options,
    )


def say(tmp_path, end=""):
    """Returns the exit status, and what the process wrote to stderr."""
    process = start(tmp_path, end)
    _, error = process.communicate(timeout=30)
    return process.returncode, error.decode()


def test_information_is_left_out_and_errors_are_shown(tmp_path):
    error = "E0000 00:00:1 cuda.cc:51] no kernel image\n"
    assert say(tmp_path)[1] == f"{error}afterwards\n"


def test_the_last_words_of_a_process_are_shown(tmp_path):
    status, error = say(tmp_path, "os.write(2, b'needs AVX\\n'); os.abort()")
    assert status < 0
    assert "needs AVX" in error


def test_what_libjpeg_repeats_is_shown_once(tmp_path):
    end = """
for i in range(9):
    os.write(2, b'Corrupt JPEG data: %d extraneous bytes before marker\\n' % i)
    os.write(2, b'Premature end of JPEG file\\nother %d\\n' % i)
    os.write(2, b'Input file read error\\n')
os.write(2, b'no end')
"""
    lines = say(tmp_path, end)[1].splitlines()
    assert lines[1:] == [
        "Corrupt JPEG data: 0 extraneous bytes before marker "
        "(libjpeg; shown once)",
        "Premature end of JPEG file (libjpeg; shown once)",
        "other 0",
        "Input file read error (libjpeg; shown once)",
        *(f"other {i}" for i in range(1, 9)),
        "no endafterwards",
    ]


def test_a_line_without_an_end_does_not_wait(tmp_path):
    """Ctrl-C reaches all processes; the one that copies lines goes on."""
    end = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: os.write(2, b' interrupted'))
os.write(2, b'Password: ')
sys.stdin.readline()
os.killpg(0, signal.SIGINT)
"""
    process = start(tmp_path, end, stdin=subprocess.PIPE)
    seen = b""
    while not seen.endswith(b"Password: "):
        seen += process.stderr.read(1)
    _, seen = process.communicate(b"secret\n", timeout=30)
    assert seen == b" interruptedafterwards\n"
    assert process.returncode == 0
