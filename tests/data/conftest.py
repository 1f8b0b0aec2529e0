"""Ten small images, as a folder and as a data set of TFDS."""

import functools
import warnings

import numpy as np
import pytest
import tensorflow as tf

from keras_mixer import data


@pytest.fixture
def folder(tmp_path):
    """Ten 6 x 6 images in two classes; the red value is the image's number."""
    for i in range(10):
        path = tmp_path / ("cats" if i < 7 else "dogs") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        image = np.full((6, 6, 3), i * 10, np.uint8)
        path.write_bytes(tf.io.encode_png(image).numpy())
    return tmp_path


@functools.cache  # TFDS takes a name once
def builder_class():
    """Makes ten 6 x 6 images in three files."""
    import tensorflow_datasets as tfds

    class TinyShapes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(
                    {
                        "picture": tfds.features.Image(shape=(6, 6, 3)),
                        "shape": tfds.features.ClassLabel(names=["o", "x"]),
                    }
                )
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(10):
                image = np.full((6, 6, 3), i * 10, np.uint8)
                yield i, {"picture": image, "shape": i % 2}

    return TinyShapes


@functools.cache
def float_builder_class():
    """Makes the same images of floats, multiplied by `factor`."""
    import tensorflow_datasets as tfds

    class TinyFloats(builder_class()):
        VERSION = tfds.core.Version("1.0.0")
        factor = 1.0

        def _info(self):
            image = tfds.features.Image(shape=(6, 6, 1), dtype=np.float32)
            label = tfds.features.ClassLabel(names=["o", "x"])
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(
                    {"picture": image, "shape": label}
                )
            )

        def _generate_examples(self):
            for i, example in super()._generate_examples():
                image = example["picture"][..., :1] / np.float32(255)
                yield i, {**example, "picture": image * self.factor}

    return TinyFloats


def prepare(root, builder=builder_class, **options):
    import tensorflow_datasets as tfds

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TFDS's own
        builder()(data_dir=root, **options).download_and_prepare(
            download_config=tfds.download.DownloadConfig(num_shards=3)
        )
    return root


@pytest.fixture(scope="session")
def tiny_shapes(tmp_path_factory):
    """A TFDS data set of ten 6 x 6 images in three files."""
    return prepare(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="session")
def array_shapes(tmp_path_factory):
    """The same, prepared as array_record."""
    return prepare(tmp_path_factory.mktemp("array"), file_format="array_record")


@pytest.fixture(params=["folder", "tfrecords"])
def ten(request):
    """The ten images, as a table of files and as a stream of records."""
    if request.param == "folder":
        root = request.getfixturevalue("folder")
        return lambda split: data.open_split(f"folder:{root}", split)
    root = request.getfixturevalue("tiny_shapes")
    return lambda split: data.open_split("tiny_shapes", split, str(root))
