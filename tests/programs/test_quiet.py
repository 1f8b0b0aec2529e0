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


def say(tmp_path, end=""):
    (tmp_path / "tensorflow.py").write_text(_SPEAKER.format(end=end))
    code = (
        "import sys; from keras_mixer.programs import quiet\n"
        "quiet.import_tensorflow()\n"
        "print('afterwards', file=sys.stderr)"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )


def test_information_is_left_out_and_errors_are_shown(tmp_path):
    error = "E0000 00:00:1 cuda.cc:51] no kernel image\n"
    assert say(tmp_path).stderr == f"{error}afterwards\n"


def test_the_last_words_of_a_process_are_shown(tmp_path):
    died = say(tmp_path, "os.write(2, b'needs AVX\\n'); os.abort()")
    assert died.returncode < 0
    assert "needs AVX" in died.stderr
