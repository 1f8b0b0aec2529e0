"""The same logits as timm's Mixers, from files in timm's format.

Each of timm's models gets random non-zero weights everywhere, LayerNorms and
head included, and is saved as .safetensors. keras_mixer loads that file
(`MixerB16(weights=path)`), and both models see the same images. Nothing is
downloaded.

The last column is the error of the same weights with `gelu_approximate=True`,
the tanh approximation of GELU, which the authors' code applies and timm does
not. A model fails if max|a - b| / max|b| of the logits is above 1e-4, or if it
is not ten times below that column, because then the comparison does not tell
the two functions apart.

    pip install -e .
    pip install torch torchvision \\
        --index-url https://download.pytorch.org/whl/cpu
    pip install timm==1.0.31
    python benchmarks/compare_timm.py
    python benchmarks/compare_timm.py --models=mixer_b32_224,mixer_l16_224

With another backend: KERAS_BACKEND=jax or torch before the command.
"""

import argparse
import importlib.util
import os
import pathlib
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import peers

import keras_mixer

TOLERANCE = 1e-4
FACTORIES = {
    "mixer_s32_224": keras_mixer.MixerS32,
    "mixer_s16_224": keras_mixer.MixerS16,
    "mixer_b32_224": keras_mixer.MixerB32,
    "mixer_b16_224": keras_mixer.MixerB16,
    "mixer_l32_224": keras_mixer.MixerL32,
    "mixer_l16_224": keras_mixer.MixerL16,
}
DEFAULT = "mixer_s32_224,mixer_s16_224,mixer_b16_224"


def randomize(model: Any, seed: int) -> None:
    """Sets every parameter of a torch model to random values.

    Kernels keep the variance of their input, scales are around 1 and biases
    around 0, so that a wrong scale, bias or order shows in the logits.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:  # [out, in] or [out, in, height, width]
                value /= (parameter.numel() / len(parameter)) ** 0.5
            else:
                value = 0.2 * value + name.endswith("weight")
            parameter.copy_(value)


def timm_logits(
    name: str, images: np.ndarray, path: pathlib.Path, seed: int
) -> np.ndarray:
    """Saves one of timm's models to `path`; returns its logits [batch, 1000].

    Args:
      name: timm's name of the model.
      images: [batch, height, width, 3], values in [-1, 1].
      path: Where the .safetensors file goes.
      seed: Of the weights.
    """
    import torch
    from safetensors.torch import save_file

    timm = peers.import_timm()
    model = timm.create_model(name, pretrained=False).eval()
    randomize(model, seed)
    save_file(model.state_dict(), path)
    with torch.inference_mode():
        nchw = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        return model(nchw).numpy()


def keras_logits(
    name: str, images: np.ndarray, path: pathlib.Path, **options: Any
) -> np.ndarray:
    """Returns the logits of keras_mixer's model with the weights of `path`."""
    model = FACTORIES[name](weights=path, classifier_activation=None, **options)
    return keras.ops.convert_to_numpy(model(images))


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """max|a - b| / max|b|; NaN anywhere counts as infinite."""
    error = np.max(np.abs(np.float64(a) - b)) / np.max(np.abs(b))
    return float(error) if np.isfinite(error) else float("inf")


def compare(name: str, seed: int) -> tuple[float, float]:
    """Returns the errors of the logits, with the exact GELU and with tanh."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(-1, 1, (2, 224, 224, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / f"{name}.safetensors"
        want = timm_logits(name, images, path, seed)
        with warnings.catch_warnings():
            # The default model must load timm's file without a warning.
            warnings.simplefilter("error", UserWarning)
            exact = keras_logits(name, images, path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tanh = keras_logits(name, images, path, gelu_approximate=True)
        if not any("exact GELU" in str(w.message) for w in caught):
            raise AssertionError(
                f"{name}: gelu_approximate=True on timm's weights did not warn"
            )
    return relative_error(exact, want), relative_error(tanh, want)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns 1 if a model failed, and 0 otherwise."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--models",
        default=DEFAULT,
        help="timm's names, separated by commas: any of "
        f"{', '.join(FACTORIES)} (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the weights and the images (default: %(default)s)",
    )
    options = parser.parse_args(argv)
    names = options.models.split(",")
    for name in names:
        if name not in FACTORIES:
            parser.error(
                f"--models: {name!r} is none of {', '.join(FACTORIES)}"
            )
    for package in ("torch", "timm"):
        if importlib.util.find_spec(package) is None:
            parser.error(f"{package} is not installed; --help says how.")

    start, failed = time.monotonic(), []
    print(f"{'model':<15} {'max|a-b|/max|b|':>15}  {'':<4} {'with tanh':>10}")
    for name in names:
        error, tanh = compare(name, options.seed)
        passed = error <= TOLERANCE and 10 * error <= tanh
        failed += [] if passed else [name]
        print(
            f"{name:<15} {error:>15.1e}  {'pass' if passed else 'FAIL':<4} "
            f"{tanh:>10.1e}",
            flush=True,
        )
    import timm
    import torch

    print(
        f"tolerance {TOLERANCE:g}; timm {timm.__version__}, torch "
        f"{torch.__version__}, keras {keras.__version__} on "
        f"{keras.backend.backend()}; {time.monotonic() - start:.0f} s"
    )
    if failed:
        print(f"Logits differ from timm's: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
