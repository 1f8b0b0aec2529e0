"""Files and folders that the programs are given: whole, damaged, or strange."""

import io
import json
import os
import shutil

import numpy as np

from keras_mixer import weights as weights_lib
from keras_mixer.run import checkpoint, config as config_lib, recipes
from keras_mixer.training import assembly

MODEL = (
    "model.variant=custom",
    "model.image_size=8",
    "model.patch_size=4",
    "model.num_blocks=1",
    "model.hidden_dim=8",
    "model.tokens_mlp_dim=8",
    "model.channels_mlp_dim=8",
)
LINE = {"step": 20, "kind": "train", "loss": 1.0, "lr": 0.1, "grad_norm": 1.0}
EVALUATION = {
    "step": 20,
    "kind": "eval",
    "split": "test",
    "accuracy": 0.5,
    "loss": 1.0,
    "count": 360,
}


def _lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_run(folder):
    """Writes the workdir of a finished run of 20 steps, which nobody ran."""
    config = config_lib.override(
        recipes.digits(), [*MODEL, "train.steps=20", "train.batch_size=24"]
    )
    config = config_lib.resolve(config, num_examples=1437)
    folder.mkdir()
    config_lib.save(config, folder / "config.json")
    names = [str(i) for i in range(10)]
    (folder / "classes.json").write_text(json.dumps(names))
    (folder / "metrics.jsonl").write_text(_lines(LINE, EVALUATION))
    result = {**EVALUATION, "seconds": 1.0}
    (folder / "result.json").write_text(json.dumps(result))
    model = assembly.build_mixer(config, 10)
    state = {v.path: np.asarray(v) for v in model.weights}
    state = dict(weights_lib.from_model(model, "here").values)
    checkpoints = checkpoint.Checkpoints(folder)
    checkpoints.save(20, {"model": state})
    checkpoints.wait()
    return model


# Workdirs by name: which files differ from those of the whole run. None: the
# file is missing.
_MODEL_FILE = "checkpoints/step_00000020/model.safetensors"
_MANIFEST = "checkpoints/step_00000020/manifest.json"
_RUNS = {
    "no_config": {"config.json": None},
    "no_classes": {"classes.json": None},
    "no_checkpoints": {_MANIFEST: None},
    "no_metrics": {"metrics.jsonl": None},
    "empty_config": {"config.json": ""},
    "cut_config": {"config.json": '{"model": {"variant": "S/16",\n'},
    "list_config": {"config.json": "[1, 2]"},
    "bytes_config": {"config.json": b"\xff\xfe\x00\x01"},
    "field_config": {"config.json": '{"model": {"variante": "S/16"}}'},
    "type_config": {"config.json": '{"train": {"batch_size": "many"}}'},
    "null_config": {"config.json": '{"model": null}'},
    "cut_classes": {"classes.json": '["0", '},
    "object_classes": {"classes.json": '{"a": 1}'},
    "number_classes": {"classes.json": "3"},
    "nested_classes": {"classes.json": '[["a"], ["b"]]'},
    "nine_classes": {"classes.json": json.dumps(list("012345678"))},
    "no_class": {"classes.json": "[]"},
    "cut_checkpoint": {_MODEL_FILE: b"\x10\x00"},
    "cut_manifest": {_MANIFEST: '{"files": '},
    "list_manifest": {_MANIFEST: "[]"},
    "other_model": {"other_model.json": '{"build_model": "mine.resnet"}'},
    "cut_other_model": {"other_model.json": "{"},
    "empty_metrics": {"metrics.jsonl": ""},
    "text_metrics": {"metrics.jsonl": "hello\nworld\n"},
    "bytes_metrics": {"metrics.jsonl": b"\xff\xfe\x00\x01"},
    "lossless_metrics": {"metrics.jsonl": _lines({"step": 1, "kind": "train"})},
    "word_metrics": {"metrics.jsonl": _lines({**LINE, "step": "many"})},
    "null_metrics": {"metrics.jsonl": _lines({**LINE, "loss": None})},
    "list_metrics": {"metrics.jsonl": _lines({**LINE, "loss": [1, 2]})},
    "cut_result": {"result.json": '{"step": 20, '},
    "list_result": {"result.json": "[1]"},
    "empty_result": {"result.json": "{}"},
    "word_result": {
        "result.json": json.dumps({**EVALUATION, "seconds": "long"})
    },
    "no_best": {"checkpoints/best.json": "{}"},
}


def _write_damaged_runs(folder, run):
    folder.mkdir()
    for name, files in _RUNS.items():
        copy = folder / name
        shutil.copytree(run, copy)
        for file, content in files.items():
            path = copy / file
            if content is None:
                path.unlink()
            elif isinstance(content, str):
                path.write_text(content)
            else:
                path.write_bytes(content)


def _npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def _write_weights(folder, model):
    folder.mkdir()
    weights_lib.save_npz(model, folder / "whole.npz")
    values = dict(weights_lib.read(folder / "whole.npz").values)
    kernel = "MixerBlock_0/token_mixing/Dense_0/kernel"
    whole = (folder / "whole.npz").read_bytes()
    header = b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}'
    for name, content in {
        "empty.npz": b"",
        "text.npz": b"hello",
        "cut.npz": whole[: len(whole) // 2],
        "flipped.npz": whole[:300] + b"\xff" * 64 + whole[364:],
        "array.npz": _npy(np.ones(3)),
        "objects.npz": _npz(a=np.array([{}, "x"], object)),
        "other.npz": _npz(a=np.ones(3)),
        "no_mixer.npz": _npz(**{"stem/kernel": np.ones((4, 4, 3, 8))}),
        "nan.npz": _npz(**{**values, kernel: values[kernel] * np.nan}),
        "flat.npz": _npz(**{**values, kernel: values[kernel].ravel()}),
        "scalar.npz": _npz(**{**values, kernel: np.float32(1)}),
        "words.npz": _npz(
            **{**values, "head/bias": np.array(["a"] * 10, dtype=str)}
        ),
        "scalar_head.npz": _npz(**{**values, "head/bias": np.float32(1)}),
        "scalar_stem.npz": _npz(**{**values, "stem/kernel": np.float32(1)}),
        "no_head.npz": _npz(
            **{k: v for k, v in values.items() if "head/" not in k}
        ),
        "empty.safetensors": b"",
        "text.safetensors": b"hello, this is a text and no weights",
        "huge.safetensors": b"\xff" * 16,
        "cut.safetensors": len(header).to_bytes(8, "little") + header,
        "empty.weights.h5": b"",
        "text.weights.h5": b"hello",
        "weights.bin": b"hello",
        "weights.pt": b"hello",
    }.items():
        (folder / name).write_bytes(content)
    (folder / "folder.npz").mkdir()
    model.save_weights(folder / "whole.weights.h5")
    model.save(folder / "whole.keras")


def _png():
    """A PNG of 1 x 1 pixels."""
    return bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
        "0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae"
        "426082"
    )


# Folders of images: the files of each, by their paths.
_PNG = _png()
_FOLDERS = {
    "one_class": {"a/1.png": _PNG, "a/2.png": _PNG},
    "unzipped": {"photos/a/1.png": _PNG, "photos/b/1.png": _PNG},
    "flat": {"1.png": _PNG, "2.png": _PNG},
    "no_images": {"a/1.txt": b"", "b/1.txt": b""},
    "hollow": {"a/1.png": _PNG, "b/.hidden": b""},
    "mixed": {"train/a/1.png": _PNG, "b/1.png": _PNG},
    "differ": {
        "train/a/1.png": _PNG,
        "train/b/1.png": _PNG,
        "test/a/1.png": _PNG,
        "test/c/1.png": _PNG,
    },
    "no_test": {"a/1.png": _PNG, "b/1.png": _PNG},
    "unreadable": {
        f"{split}/{name}/{i}.jpg": b"this is a text"
        for split in ("train", "test")
        for name in "ab"
        for i in range(20)
    },
}


def _write_folders(folder):
    for name, files in _FOLDERS.items():
        for file, content in files.items():
            path = folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def write_all(folder):
    """Writes everything into a folder, which is empty."""
    model = write_run(folder / "run")
    _write_damaged_runs(folder / "runs", folder / "run")
    _write_weights(folder / "weights", model)
    _write_folders(folder / "photos")
    for number, name in enumerate(("saved_model.pb", "saved_model.pb", "x"), 1):
        version = folder / "versions" / str(number)
        version.mkdir(parents=True)
        (version / name).write_text("hello")
    card = {"class_names": None, "model": {"classes": 2}, "provenance": {}}
    (folder / "versions" / "2" / "export.json").write_text(json.dumps(card))
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "note.txt").write_text("mine")
    (folder / "file").write_text("hello")
    (folder / "picture.json").write_text("{}")
    (folder / "damaged.json").write_text('{"rows": ')
    (folder / "damaged.png").write_bytes(b"")
    os.symlink(folder / "nowhere", folder / "dead")
    for name, content in {
        "empty": b"",
        "blank": b"a\n\nb\n",
        "three": b"a\nb\nc\n",
        "latin": "\n".join(["caf\xe9"] * 10).encode("latin-1"),
        "same": b"a\n" * 10,
    }.items():
        (folder / f"{name}_names.txt").write_bytes(content)
    scores = {"task": "classification", "workdir": str(folder / "run")}
    for name, content in {
        "cut": '{"task": ',
        "list": "[1, 2]",
        "keyless": json.dumps(scores),
        "foreign": json.dumps({"task": "classification", "workdir": "/x"}),
    }.items():
        (folder / f"{name}_scores.json").write_text(content)
