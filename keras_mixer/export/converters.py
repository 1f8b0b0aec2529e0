"""Writes the files of other runtimes, float32 and int8.

Keras' `Model.export` makes them from one small model: uint8 pixels of the
model's size in, logits and probabilities out. No format but the SavedModel
holds the resizing and the decoding of files.
"""

import contextlib
import io
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mixer.export.classifier import Classifier
from keras_mixer.export.errors import ExportError
from keras_mixer.export.formats import FORMATS, INT8
from keras_mixer.models.preprocessing import to_value_range

_CHUNK = 8  # images whose activations the calibration of ONNX holds at most


def make_pixel_model(classifier: Classifier) -> keras.Model:
    """Returns a model of uint8 pixels, `[batch, side, side, 3]`.

    Its outputs are "logits" and "probabilities", float32 `[batch, classes]`.
    """
    side, head = classifier.image_size, classifier.head
    image = keras.Input((side, side, 3), dtype="uint8", name="image")
    linear = keras.layers.Dense(
        head.units, use_bias=head.use_bias, dtype="float32", name="logits"
    )
    logits = linear(classifier.body(to_value_range(image)))
    linear.set_weights(head.get_weights())
    probabilities = keras.layers.Activation(
        classifier.probabilities, dtype="float32", name="probabilities"
    )(logits)
    return keras.Model(
        image, {"logits": logits, "probabilities": probabilities}
    )


def write(
    model: keras.Model,
    name: str,
    folder: pathlib.Path,
    images: np.ndarray | None = None,
) -> None:
    """Writes a model of pixels in a format.

    Args:
      model: From `make_pixel_model`.
      name: One of `formats.FORMATS`.
      folder: For the file. For an int8 file the float32 one is there.
      images: To calibrate an int8 file with, uint8 `[n, side, side, 3]`.

    Raises:
      ExportError: The converter fails.
    """
    kind = FORMATS[name]
    file = kind.files_of(kind.precision if images is None else INT8)[0]
    try:
        with _quiet():
            if images is None:
                _convert(model, name, folder / file)
            elif kind.keras_name == "litert":
                _convert(model, name, folder / file, **_lite_int8(images))
            else:
                quantise = {"onnx": _quantise_onnx, "openvino": _quantise_ir}
                quantise[name](folder / kind.files[0], folder / file, images)
    except Exception as error:  # converters raise anything
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(
            f"{file}: the converter fails: {lines[0][:500]}"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps warnings and progress of converters to themselves."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _convert(
    model: keras.Model, name: str, path: pathlib.Path, **options: Any
) -> None:
    if FORMATS[name].precision == "float16":
        options = {
            "optimizations": [tf.lite.Optimize.DEFAULT],
            "target_spec": {"supported_types": [tf.float16]},
        }
    signature = [
        keras.InputSpec(dtype="uint8", shape=model.input_shape, name="image")
    ]
    model.export(
        str(path),
        format=FORMATS[name].keras_name,
        verbose=False,
        input_signature=signature,
        **options,
    )


def _lite_int8(images: np.ndarray) -> dict[str, Any]:
    """Returns what makes LiteRT's converter use integers alone.

    It leaves the reciprocal root of a LayerNorm in float32.
    """
    return {
        "optimizations": [tf.lite.Optimize.DEFAULT],
        "representative_dataset": lambda: (
            [images[i : i + 1]] for i in range(len(images))
        ),
        "target_spec": {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]},
    }


class _Reader:
    """What onnxruntime calibrates with, in ranges of the images."""

    def __init__(self, images: np.ndarray):
        self._images = images
        self._next, self._end = 0, len(images)

    def __len__(self) -> int:
        return len(self._images)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._next, self._end = start_index, end_index

    def get_next(self) -> dict[str, np.ndarray] | None:
        i = self._next
        if i >= self._end:
            return None
        self._next += 1
        return {"image": self._images[i : i + 1]}


def _quantise_onnx(
    source: pathlib.Path, target: pathlib.Path, images: np.ndarray
) -> None:
    """Quantises what multiplies matrices; the rest stays in float32."""
    from onnxruntime import quantization
    from onnxruntime.quantization import shape_inference

    chunk = max(n for n in range(1, _CHUNK + 1) if len(images) % n == 0)
    prepared = target.with_suffix(".prepared")
    shape_inference.quant_pre_process(str(source), str(prepared))
    quantization.quantize_static(
        str(prepared),
        str(target),
        _Reader(images),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Conv", "Gemm"],
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        # More exact than the extremes: a few large activations decide those.
        calibrate_method=quantization.CalibrationMethod.Percentile,
        # Without it the activations of all images are in memory at once. The
        # images must divide into equal parts.
        extra_options={"CalibStridedMinMax": chunk},
    )
    prepared.unlink()


def _quantise_ir(
    source: pathlib.Path, target: pathlib.Path, images: np.ndarray
) -> None:
    import nncf
    import openvino
    from nncf.quantization import advanced_parameters as advanced

    # Smooth quantisation moves scales along the channels. In the token-mixing
    # MLP the tokens are in their place: digits fell from 0.992 to 0.281.
    off = advanced.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1)
    quantised = nncf.quantize(
        openvino.Core().read_model(source),
        nncf.Dataset([images[i : i + 1] for i in range(len(images))]),
        subset_size=len(images),
        model_type=nncf.ModelType.TRANSFORMER,
        advanced_parameters=advanced.AdvancedQuantizationParameters(
            smooth_quant_alphas=off
        ),
    )
    openvino.save_model(quantised, target, compress_to_fp16=False)
