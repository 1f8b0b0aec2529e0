"""Gives bad inputs to a file, in a process with its runtime alone.

python -m tests.export.bad_inputs KIND FILE SIDE prints a JSON object: what
became of each input, and of a good one after it.
"""

import json
import os
import sys

import numpy as np

from keras_mixer.export import runtime_process


def outcome(call, image):
    """Returns the name of the error, or the shape of the logits."""
    try:
        return list(call(image)["logits"].shape)
    except Exception as error:
        return type(error).__name__


if __name__ == "__main__":
    kind, file, side = sys.argv[1], sys.argv[2], int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    good = np.zeros([2, side, side, 3], np.uint8)
    inputs = {
        "dtype": good.astype(np.float32),
        "size": good[:, 1:],
        "channels": good[..., :1],
        "rank": good[0],
        "as many pixels": good.reshape(2, 2 * side, side // 2, 3),
        "empty": good[:0],
    }
    found = {}
    for name, image in inputs.items():
        call = runtime_process.open_file(kind, file)
        found[name] = outcome(call, image)
        found[f"good after {name}"] = outcome(call, good)
    print(json.dumps(found), file=answers)
