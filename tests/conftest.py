"""Fixtures. The CPU is split into four devices when TensorFlow is imported."""

import importlib.util
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# tests/__main__.py runs some rooms with JAX.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# The tests are for CPUs. Only one process at a time can hold libtpu, and
# tensorflow-tpu asks for Google's metadata where there is no TPU.
os.environ.setdefault("TPU_LOAD_LIBRARY", "0")

import pytest

from keras_mixer.programs import quiet

DEVICES = 4
if os.environ["KERAS_BACKEND"] == "jax":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={DEVICES} "
        + os.environ.get("XLA_FLAGS", "")
    )


def split_the_cpu(tensorflow) -> None:
    tensorflow.config.set_logical_device_configuration(
        tensorflow.config.list_physical_devices("CPU")[0],
        [tensorflow.config.LogicalDeviceConfiguration()] * DEVICES,
    )


class SplitTheCpuOnImport:
    """Splits the CPU as soon as anything imports TensorFlow, in less time.

    TensorFlow allows this before its first use only. Importing it here would
    cost the rooms that do not need it seconds and memory. This is a finder of
    `sys.meta_path`; TensorFlow's own loader does the work.
    """

    def find_spec(self, name, path=None, target=None):
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_split(module) -> None:
            with quiet.without_extras():
                execute(module)
            split_the_cpu(module)

        spec.loader.exec_module = execute_and_split
        return spec


if "tensorflow" in sys.modules:  # a plugin of pytest imported it
    split_the_cpu(sys.modules["tensorflow"])
else:
    sys.meta_path.insert(0, SplitTheCpuOnImport())

from tests.programs.here import run_here  # noqa: F401, it is a fixture

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture
def cifar10_dir() -> pathlib.Path:
    """Folder of the prepared TFDS data set cifar10."""
    path = SHARED / "tfds"
    if not (path / "cifar10").is_dir():
        pytest.skip("needs the prepared data set ../shared/tfds/cifar10")
    return path


@pytest.fixture
def photos_dir() -> pathlib.Path:
    """Image folder of JPEGs of many sizes, two classes."""
    path = SHARED / "photos"
    if not path.is_dir():
        pytest.skip("needs the image folder ../shared/photos")
    return path


@pytest.fixture
def imagenet_files() -> list[pathlib.Path]:
    """JPEGs of ImageNet: 4:4:4, 4:2:2, 4:2:0 and two grey ones."""
    files = sorted((SHARED / "imagenet_samples").glob("*.JPEG"))
    if not files:
        pytest.skip("needs the images ../shared/imagenet_samples/*.JPEG")
    return files


def make_strategy(replicas: int):
    """Makes a strategy over the first of the four CPU devices."""
    import tensorflow as tf

    from keras_mixer.engines import distribute

    devices = [f"/cpu:{i}" for i in range(replicas)]
    if replicas == 1:
        return tf.distribute.OneDeviceStrategy(devices[0])
    return distribute.mirror(devices)


def make_engine(replicas: int):
    """Makes the engine of Keras' backend over the first of the CPU devices."""
    if os.environ["KERAS_BACKEND"] == "jax":
        import jax as jax_library

        from keras_mixer.engines import jax

        return jax.JaxEngine(jax_library.devices()[:replicas])
    from keras_mixer.engines import tensorflow

    return tensorflow.TensorFlowEngine(make_strategy(replicas))


@pytest.fixture
def strategy_of():
    return make_strategy


@pytest.fixture
def engine_of():
    return make_engine


@pytest.fixture(scope="session")
def digits_workdir(tmp_path_factory) -> pathlib.Path:
    """A finished run on the digits: 40 steps, a checkpoint every 10.

    It has a validation split, and so a best checkpoint. Tests only read it: a
    test that changes a workdir copies it first.
    """
    from keras_mixer.run import config, recipes
    from keras_mixer.training import loop

    workdir = tmp_path_factory.mktemp("digits") / "run"
    overrides = [
        "data.train_split=train[:80%]",
        "data.val_split=train[80%:]",
        "model.num_blocks=2",
        "train.steps=40",
        "train.log_every=10",
        "train.eval_every=20",
        "train.checkpoint_every=10",
        "train.keep_checkpoints=3",
        "optim.warmup_steps=4",
    ]
    loop.fit(
        config.override(recipes.digits(), overrides),
        workdir=workdir,
        engine=make_engine(1),
    )
    return workdir


@pytest.fixture
def trusting(monkeypatch):
    """Exports without the fresh process, for tests of something else."""
    from keras_mixer.export import fresh

    monkeypatch.setattr(fresh, "check", lambda *_, **__: {})
