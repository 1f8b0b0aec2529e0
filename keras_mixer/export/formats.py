"""The formats of a version, and which of them this environment can write.

Nothing of a format is imported here, so that a program says what is missing
before it waits for a library.
"""

import dataclasses
import importlib.util
import textwrap
from typing import Any

from keras_mixer.export.errors import ExportError
from keras_mixer.run import suggest

SAVED_MODEL = "savedmodel"
INT8 = "int8"


@dataclasses.dataclass(frozen=True)
class Format:
    """A file of one runtime, which takes pixels of the model's size."""

    keras_name: str  # of keras.Model.export
    files: tuple[str, ...]  # in the version; the runtime opens the first
    extra: str  # of setup.cfg
    packages: tuple[str, ...]  # what writes and runs it, as it is imported
    runtime: str  # what runs it, as pip calls it
    precision: str = "float32"
    has_int8: bool = True

    def files_of(self, precision: str) -> list[str]:
        """Returns the names of the files, of int8 model_int8.onnx."""
        if precision != INT8:
            return list(self.files)
        return [x.replace("model.", f"model_{INT8}.") for x in self.files]


FORMATS = {
    "onnx": Format(
        keras_name="onnx",
        files=("model.onnx",),
        extra="onnx",
        packages=("onnx", "onnxruntime", "tf2onnx"),
        runtime="onnxruntime",
    ),
    "litert": Format(
        keras_name="litert",
        files=("model.tflite",),
        extra="litert",
        packages=("ai_edge_litert",),
        runtime="ai-edge-litert",
    ),
    # Half the size of the float32 file.
    "litert_float16": Format(
        keras_name="litert",
        files=("model_float16.tflite",),
        extra="litert",
        packages=("ai_edge_litert",),
        runtime="ai-edge-litert",
        precision="float16",
        has_int8=False,
    ),
    "openvino": Format(
        keras_name="openvino",
        files=("model.xml", "model.bin"),
        extra="openvino",
        packages=("openvino", "nncf"),
        runtime="openvino",
    ),
}
NAMES = (SAVED_MODEL, *FORMATS)


def _missing(name: str) -> list[str]:
    """Returns the packages that a format needs and that are not installed."""
    if name == SAVED_MODEL:
        return []
    packages = FORMATS[name].packages
    return [x for x in packages if importlib.util.find_spec(x) is None]


def check_formats(
    formats: Any, *, int8: bool, measured: bool, precision: Any, xla: Any
) -> tuple[str, ...]:
    """Returns the names of the formats to write.

    Args:
      formats: A list of `NAMES`.
      int8: Whether int8 files are to be written, too.
      measured: Whether the accuracy is.
      precision: Of the SavedModel.
      xla: Whether that is compiled.

    Raises:
      ExportError: A name is unknown or comes twice, packages of a format are
        missing, no format has an int8 file, or an option is not for them.
      ValueError: It is no list.
    """
    allowed = ", ".join(NAMES)
    suggest.check_type("formats", formats, list | tuple, "a list of names")
    for name in formats:
        if name not in NAMES:
            raise ExportError(
                f"formats are {allowed}. Received: {name!r}."
                f"{suggest.nearest(name, NAMES)}"
            )
    if not formats or len(set(formats)) < len(formats):
        raise ExportError(
            f"formats must be one or more of {allowed}, each once. Received: "
            f"{', '.join(formats) or 'none'}"
        )
    for name in formats:
        if missing := _missing(name):
            raise ExportError(
                f"The format {name} needs {', '.join(missing)}: "
                f"pip install 'keras-mixer[{FORMATS[name].extra}]'. Formats "
                f"that can be written here: {', '.join(writable())}"
            )
    if int8 and not int8_of(formats):
        with_int8 = ", ".join(int8_of(FORMATS))
        raise ExportError(
            f"An int8 file is of one of the formats {with_int8}. Received: "
            f"formats={','.join(formats)}"
        )
    if int8 and not measured:
        raise ExportError(
            "The card of an int8 file says what accuracy it loses: name a "
            "split to measure on, too (split, --accuracy_split)."
        )
    others = [name for name in formats if name != SAVED_MODEL]
    if others and precision != "float32":
        raise ExportError(
            f"The format {others[0]} is made from the float32 model: leave "
            f"precision at 'float32'. Received: {precision!r}"
        )
    if xla is True and SAVED_MODEL not in formats:
        raise ExportError(
            f"xla compiles the {SAVED_MODEL}. Received: "
            f"formats={','.join(formats)}"
        )
    return tuple(formats)


def writable() -> list[str]:
    """Returns the names of the formats that this environment can write."""
    return [name for name in NAMES if not _missing(name)]


def int8_of(formats: Any) -> list[str]:
    """Returns which of some formats have an int8 file."""
    return [x for x in formats if x != SAVED_MODEL and FORMATS[x].has_int8]


def help_text() -> str:
    """Says which formats can be written here, and what others need."""
    lines = [f"Formats that can be written here: {', '.join(writable())}."]
    for extra in dict.fromkeys(x.extra for x in FORMATS.values()):
        names = [x for x in FORMATS if FORMATS[x].extra == extra]
        missing = _missing(names[0])
        if missing:
            lines.append(
                f"Missing for {', '.join(names)}: {', '.join(missing)} "
                f"(pip install 'keras-mixer[{extra}]')."
            )
    return "\n".join(textwrap.fill(line, 80) for line in lines)
