"""The same logits as timm's Mixers, from files in timm's format.

Each of timm's models gets random non-zero weights everywhere, LayerNorms and
head included, and the mean and standard deviation of Google's weights or of
MIIL's. timm writes its config.json, and the weights are saved beside it.
keras_mixer loads them (`MixerB16(weights=folder)`). Its model sees images in
[-1, 1], and timm's the same images after its own normalisation. Nothing is
downloaded.

The last column is the error of the same weights with `gelu_approximate=True`,
the tanh approximation of GELU, which the authors' code applies and timm does
not. A model fails if max|a - b| / max|b| of the logits is above 1e-5, or if it
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
import itertools
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

TOLERANCE = 1e-5
# Whose statistics, and the pretrained model of timm that has them.
STATISTICS = {
    "google": "mixer_b16_224.goog_in21k_ft_in1k",
    "miil": "mixer_b16_224.miil_in21k_ft_in1k",
}
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
    name: str,
    statistics: str,
    images: np.ndarray,
    folder: pathlib.Path,
    seed: int,
) -> np.ndarray:
    """Saves one of timm's models; returns its logits [batch, 1000].

    Args:
      name: timm's name of the model.
      statistics: Key of STATISTICS.
      images: [batch, height, width, 3], values in [-1, 1].
      folder: Where model.safetensors and config.json go.
      seed: Of the weights.
    """
    import torch
    from safetensors.torch import save_file

    with peers.torchvision_may_be_absent():
        import timm
        from timm.models import get_pretrained_cfg
        from timm.models._hub import save_config_for_hf

        theirs = get_pretrained_cfg(STATISTICS[statistics])
        keys = ("mean", "std", "crop_pct", "interpolation")
        overlay = {key: getattr(theirs, key) for key in keys}
        model = timm.create_model(name, pretrained_cfg_overlay=overlay).eval()
        randomize(model, seed)
        save_config_for_hf(model, str(folder / "config.json"))
    save_file(model.state_dict(), folder / "model.safetensors")
    mean, std = (np.float32(theirs.mean), np.float32(theirs.std))
    normalised = ((images + 1) / 2 - mean) / std
    with torch.inference_mode():
        nchw = torch.from_numpy(normalised).permute(0, 3, 1, 2).contiguous()
        return model(nchw).numpy()


def keras_logits(
    name: str, images: np.ndarray, folder: pathlib.Path, **options: Any
) -> np.ndarray:
    """Returns the logits of keras_mixer's model, with weights of a folder."""
    model = FACTORIES[name](
        weights=folder, classifier_activation=None, **options
    )
    return keras.ops.convert_to_numpy(model(images))


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """max|a - b| / max|b|; NaN anywhere counts as infinite."""
    error = np.max(np.abs(np.float64(a) - b)) / np.max(np.abs(b))
    return float(error) if np.isfinite(error) else float("inf")


def compare(name: str, statistics: str, seed: int) -> tuple[float, float]:
    """Returns the errors of the logits, with the exact GELU and with tanh."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(-1, 1, (2, 224, 224, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        want = timm_logits(name, statistics, images, folder, seed)
        with warnings.catch_warnings():
            # The default model must load timm's file without a warning.
            warnings.simplefilter("error", UserWarning)
            exact = keras_logits(name, images, folder)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tanh = keras_logits(name, images, folder, gelu_approximate=True)
        if not any("exact GELU" in str(w.message) for w in caught):
            raise AssertionError(
                f"{name}: gelu_approximate=True on timm's weights did not warn"
            )
    return relative_error(exact, want), relative_error(tanh, want)


def compare_pushed(seed: int) -> float:
    """Returns the error of timm's logits from a folder that --hub writes."""
    import torch

    from keras_mixer.export import repository
    from keras_mixer.run import config as config_lib
    from keras_mixer.training import assembly

    overrides = ["model.variant=S/32", "model.image_size=64"]
    config = config_lib.override(
        config_lib.Config(), [*overrides, "model.gelu=exact"]
    )
    model = assembly.build_mixer(config, 10)
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        fan_in = np.prod(weight.shape[:-1]) or 1
        value = rng.normal(0, fan_in**-0.5, weight.shape)
        weight.assign(value + weight.path.endswith("gamma"))
    images = rng.uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as made:
        trained = assembly.Trained(model, config, None, "random", 0)
        folder = repository.push(trained, made)
        with peers.torchvision_may_be_absent():
            import timm

            theirs = timm.create_model(f"local-dir:{folder}", pretrained=True)
    with torch.inference_mode():
        nchw = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        logits = theirs.eval()(nchw).numpy()
    return relative_error(keras.ops.convert_to_numpy(model(images)), logits)


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
    print(
        f"{'model':<15} {'input':<7} {'max|a-b|/max|b|':>15}  {'':<4} "
        f"{'with tanh':>10}"
    )
    for name, statistics in itertools.product(names, STATISTICS):
        error, tanh = compare(name, statistics, options.seed)
        passed = error <= TOLERANCE and 10 * error <= tanh
        failed += [] if passed else [f"{name} ({statistics})"]
        print(
            f"{name:<15} {statistics:<7} {error:>15.1e}  "
            f"{'pass' if passed else 'FAIL':<4} {tanh:>10.1e}",
            flush=True,
        )
    error = compare_pushed(options.seed)
    passed = error <= TOLERANCE
    failed += [] if passed else ["a pushed folder"]
    print(
        f"{'pushed, S/32':<23} {error:>15.1e}  {'pass' if passed else 'FAIL'}"
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
