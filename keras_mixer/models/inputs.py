"""The class of the models, which warns of images in another value range."""

import warnings
from typing import Any

import keras

_TOO_HIGH = 16.0  # noise and other normalisations stay far below
_IMAGES = 8  # of a batch, whose values are looked at


@keras.saving.register_keras_serializable(package="keras_mixer")
class MixerModel(keras.Model):
    """A functional model of images in [-1, 1].

    It warns once if it gets integers, or floats that look like 0 to 255. The
    type is seen also while a function is traced, the values of the first images
    only where they are at hand: in an eager call, and as an array in `predict`,
    `evaluate` and `fit`.

    `class_names` are those of the head that came with `weights=`, in the order
    of the output, None if they are unknown. They are not saved with the model.
    """

    class_names: tuple[str, ...] | None = None
    _values_seen = _warned = False

    def call(
        self, inputs: Any, training: Any = None, mask: Any = None, **kwargs: Any
    ) -> Any:
        self._look_at(inputs)
        return super().call(inputs, training=training, mask=mask, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        self._look_at(x)
        return super().predict(x, *args, **kwargs)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        self._look_at(x)
        return super().evaluate(x, *args, **kwargs)

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        self._look_at(x)
        return super().fit(x, *args, **kwargs)

    def _look_at(self, images: Any) -> None:
        """Warns of an array or a tensor in another range, once."""
        dtype = getattr(images, "dtype", None)
        if dtype is None or self._warned:
            return
        dtype = keras.backend.standardize_dtype(dtype)
        found = dtype if keras.backend.is_int_dtype(dtype) else ""
        if not found and not self._values_seen:
            try:
                first = keras.ops.convert_to_numpy(images[:_IMAGES])
            except Exception:  # traced or symbolic: each backend has its own
                return
            self._values_seen = True
            if first.size and first.max() > _TOO_HIGH:
                found = f"values of up to {first.max():.3g}"
        if found:
            self._warned = True
            warnings.warn(
                f"{self.name} takes floats in [-1, 1]. Received: {found}. "
                "keras_mixer.preprocess_input(x) maps 0..255 to them.",
                stacklevel=3,
            )
