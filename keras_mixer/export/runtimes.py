"""A file of a version in a process of its own, with its runtime alone."""

import contextlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Self

import numpy as np

from keras_mixer.export import runtime_process
from keras_mixer.export.errors import ExportError
from keras_mixer.export.formats import FORMATS

# This process holds the GPU's memory and the TPU. TensorFlow would take a TPU
# when it is imported; TPU_LOAD_LIBRARY=0 keeps it from trying.
ON_CPU = {"CUDA_VISIBLE_DEVICES": "-1", "TPU_LOAD_LIBRARY": "0"}

BATCHES = (1, 7)  # sizes of the batches that are compared and timed


def make_pixels(side: int) -> np.ndarray:
    """Returns random images that fit: uint8 `[7, side, side, 3]`.

    They are large squares, which differ from one another more than noise does.
    """
    coarse = np.random.default_rng(1).integers(0, 256, (BATCHES[-1], 5, 5, 3))
    scale = -(-side // 5)
    pixels = coarse.astype(np.uint8).repeat(scale, axis=1).repeat(scale, axis=2)
    return pixels[:, :side, :side]


def to_milliseconds(seconds: np.ndarray) -> float:
    """Returns the median of calls, for the card."""
    return round(1e3 * float(np.median(seconds)), 3)


def reason_of(stderr: str) -> str:
    """Returns the line of the exception, not the notes after it."""
    lines = stderr.strip().splitlines() or ["it said nothing"]
    named = [x for x in lines if re.match(r"[\w.]+(Error|Exception)\b", x)]
    return (named or lines)[-1][:500]


class Runtime:
    """Runs a file; a context, within which the process lives.

    Args:
      name: One of `formats.FORMATS`.
      path: The file.

    Raises:
      ExportError: The process cannot read the file, or ends in between.
    """

    def __init__(self, name: str, path: pathlib.Path):
        self.file = path.name
        self._path, self._package = path, FORMATS[name].runtime
        self._kind = FORMATS[name].keras_name

    def __enter__(self) -> Self:
        self._stderr = tempfile.TemporaryFile()
        script = pathlib.Path(runtime_process.__file__)
        self._process = subprocess.Popen(
            [sys.executable, "-P", script, self._kind, self._path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **ON_CPU},
        )
        try:
            version = self._receive()["version"]
        except BaseException:
            self.__exit__()
            raise
        self.version = f"{self._package} {version}"
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        process.kill()
        process.communicate()
        self._stderr.close()

    def _receive(self) -> dict[str, np.ndarray]:
        assert self._process.stdout is not None
        found = runtime_process.receive(self._process.stdout)
        if found is not None:
            return dict(found)
        code = self._process.wait()
        self._stderr.seek(0)
        reason = reason_of(self._stderr.read().decode(errors="replace"))
        raise ExportError(
            f"{self.file}: a fresh process with {self._package} alone "
            f"cannot use it (exit code {code}): {reason}"
        )

    def __call__(
        self, image: np.ndarray, *, repeats: int = 0
    ) -> dict[str, np.ndarray]:
        """Runs uint8 `[batch, side, side, 3]`.

        Returns:
          "logits" and "probabilities", float32 `[batch, classes]`, and
          "seconds", how long each of the `repeats` took.

        Raises:
          ExportError: The runtime fails.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `_receive` says why
            runtime_process.send(
                self._process.stdin, image=image, repeats=repeats
            )
        return self._receive()
