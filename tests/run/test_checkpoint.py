"""What lies on the disk after saves, damage, kills and a full disk."""

import errno
import json
import pathlib
import shutil
import threading
from concurrent import futures

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors import numpy as safetensors_numpy

from keras_mixer.engines.tensorflow import TensorFlowEngine
from keras_mixer.run import checkpoint


def state(number):
    return {
        "model": {"kernel": np.full((3, 2), number, np.float32)},
        "run": {
            "seconds": np.asarray(number * 1.5),
            "losses": np.zeros([0], np.float32),
        },
    }


def saved(workdir, *steps, **options):
    checkpoints = checkpoint.Checkpoints(workdir, **options)
    for step in steps:
        checkpoints.save(step, state(step))
    checkpoints.wait()
    return checkpoints


def assert_restored(workdir, step):
    found = checkpoint.Checkpoints(workdir).restore()
    assert found is not None
    assert found[0] == step
    for part, arrays in state(step).items():
        assert found[1][part].keys() == arrays.keys()
        for name, value in arrays.items():
            got = found[1][part][name]
            assert (got.dtype, got.shape) == (value.dtype, value.shape)
            np.testing.assert_array_equal(got, value)


def test_the_newest_are_kept_and_restored(tmp_path):
    assert checkpoint.Checkpoints(tmp_path).restore() is None
    assert checkpoint.Checkpoints(tmp_path).latest is None
    checkpoints = saved(tmp_path, 3, 7, 12, keep=2)
    assert checkpoints.steps == [7, 12]
    assert checkpoints.latest == str(tmp_path / "checkpoints/step_00000012")
    assert_restored(tmp_path, 12)
    step, arrays = checkpoint.read_part(tmp_path, "model", 7)
    assert (step, arrays["kernel"][0, 0]) == (7, 7)
    # Readable without this project.
    file = tmp_path / "checkpoints/step_00000012/model.safetensors"
    assert safetensors_numpy.load_file(file)["kernel"].shape == (3, 2)


def test_the_best_is_kept_besides(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state(1), best={"accuracy": 0.5})
    checkpoints.save(2, state(2), best={"accuracy": 0.7})
    assert checkpoints.best == {"step": 2, "accuracy": 0.7}
    for step in (3, 4):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    assert checkpoints.steps == [2, 4]
    assert checkpoint.read_part(tmp_path, "model", "best")[0] == 2
    assert checkpoint.read_part(tmp_path, "model")[0] == 4
    other = checkpoint.Checkpoints(tmp_path)
    other.restore()
    assert other.best == {"step": 2, "accuracy": 0.7}


def test_a_best_of_steps_to_come_is_forgotten(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, state(1))
    checkpoints.save(2, state(2), best={"accuracy": 0.7})
    checkpoints.wait()
    (tmp_path / "checkpoints/step_00000002/run.safetensors").unlink()
    other = checkpoint.Checkpoints(tmp_path)
    assert other.restore()[0] == 1
    assert other.best is None


def test_a_best_that_was_removed_is_forgotten(tmp_path):
    """Somebody made room: what the manifest calls the best is not there."""
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(1, state(1), best={"accuracy": 0.7})
    checkpoints.save(2, state(2))
    checkpoints.wait()
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000001")
    other = checkpoint.Checkpoints(tmp_path)
    other.restore()
    assert other.best is None
    assert not (tmp_path / "checkpoints" / "best.json").exists()


def test_a_kill_before_best_json_loses_no_best(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state(1), best={"accuracy": 0.5})
    checkpoints.wait()
    before = (tmp_path / "checkpoints/best.json").read_bytes()
    checkpoints.save(2, state(2), best={"accuracy": 0.7})
    checkpoints.wait()
    (tmp_path / "checkpoints/best.json").write_bytes(before)
    other = checkpoint.Checkpoints(tmp_path, keep=1)
    assert other.restore()[0] == 2
    assert other.best == {"step": 2, "accuracy": 0.7}
    assert checkpoint.read_part(tmp_path, "model", "best")[0] == 2
    other.save(3, state(3))
    other.wait()
    assert other.steps == [2, 3]


def test_what_fails_after_the_manifest_costs_no_checkpoint(
    tmp_path, monkeypatch
):
    checkpoints = saved(tmp_path, 5, keep=1)

    def fail(self):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint.Checkpoints, "_prune", fail)
    checkpoints.save(9, state(9))
    with pytest.raises(checkpoint.CheckpointError, match="Input/output"):
        checkpoints.wait()
    assert checkpoints.steps == [5, 9]
    # A stray file with the name of a checkpoint is no reason to fail.
    monkeypatch.undo()
    (tmp_path / "checkpoints/step_00000001").write_text("")
    checkpoints.save(11, state(11))
    checkpoints.wait()
    assert checkpoints.steps == [11]


def test_a_folder_that_cannot_be_read_is_no_new_run(tmp_path, monkeypatch):
    saved(tmp_path, 5)

    def fail(self):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "iterdir", fail)
    with pytest.raises(checkpoint.CheckpointError, match="Cannot read"):
        checkpoint.Checkpoints(tmp_path).restore()


FILES = ["manifest.json", "model.safetensors", "run.safetensors"]


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = {
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-7]),
    "empty": lambda p: p.write_bytes(b""),
    "a bit": flip_a_bit,
    "other": lambda p: p.write_bytes(b"\0" * p.stat().st_size),
    "gone": lambda p: p.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damage_leads_to_the_one_before(tmp_path, name, damage, capsys):
    saved(tmp_path, 5, 9)
    folder = tmp_path / "checkpoints/step_00000009"
    DAMAGES[damage](folder / name)
    manifest_is_gone = (name, damage) == ("manifest.json", "gone")
    if (name, damage) == ("manifest.json", "a bit"):
        # Whatever the bit was, the checkpoint is refused or unchanged.
        step = checkpoint.Checkpoints(tmp_path).restore()[0]
        assert_restored(tmp_path, step)
        return
    assert_restored(tmp_path, 5)
    said = capsys.readouterr().out
    # Without a manifest it never was one: a killed run leaves that.
    assert ("is damaged" in said) != manifest_is_gone
    if not manifest_is_gone:
        assert "step_00000009" in said
    # The run goes on, saves the same step again, and the good one stays.
    again = checkpoint.Checkpoints(tmp_path, keep=2)
    assert again.restore()[0] == 5
    again.save(9, state(9))
    again.wait()
    assert again.steps == [5, 9]
    assert_restored(tmp_path, 9)


def test_a_damaged_one_does_not_push_out_a_good_one(tmp_path):
    saved(tmp_path, 5, 9)
    flip_a_bit(tmp_path / "checkpoints/step_00000009/model.safetensors")
    again = checkpoint.Checkpoints(tmp_path, keep=2)
    again.restore()
    again.save(11, state(11))
    again.wait()
    assert again.steps == [5, 11]


def test_no_good_one_is_an_error_not_a_new_start(tmp_path):
    saved(tmp_path, 5, 9)
    for folder in (tmp_path / "checkpoints").iterdir():
        flip_a_bit(folder / "model.safetensors")
    with pytest.raises(checkpoint.CheckpointError, match="not started over"):
        checkpoint.Checkpoints(tmp_path).restore()
    with pytest.raises(checkpoint.CheckpointError, match="No checkpoint can"):
        checkpoint.read_part(tmp_path, "model")


def test_what_a_killed_run_left_is_removed(tmp_path):
    saved(tmp_path, 5)
    half = tmp_path / "checkpoints/step_00000007"
    shutil.copytree(tmp_path / "checkpoints/step_00000005", half)
    (half / "manifest.json").rename(half / "manifest.json.tmp")
    assert_restored(tmp_path, 5)
    saved(tmp_path, 8)
    assert not half.exists()
    assert_restored(tmp_path, 8)


def test_a_full_disk_leaves_the_good_one(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, 5)
    original = safetensors_numpy.save_file

    def full(arrays, path):
        original(arrays, path)
        path.write_bytes(path.read_bytes()[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors_numpy, "save_file", full)
    checkpoints.save(9, state(9))
    with pytest.raises(
        checkpoint.CheckpointError,
        match=r"step_00000009.*No space left.*step_00000005",
    ):
        checkpoints.wait()
    assert not (tmp_path / "checkpoints/step_00000009").exists()
    assert checkpoints.latest == str(tmp_path / "checkpoints/step_00000005")
    assert_restored(tmp_path, 5)
    monkeypatch.undo()
    checkpoints.save(9, state(9))
    checkpoints.wait()
    assert_restored(tmp_path, 9)


def test_the_failure_of_a_save_is_raised_by_the_next(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    with pytest.raises(checkpoint.CheckpointError, match="step_00000001"):
        checkpoints.save(2, state(2))


def test_a_failure_is_raised_as_soon_as_it_is_known(tmp_path):
    """Not at the next save, which may be hours away."""
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.raise_failure()  # there is none
    checkpoints.save(1, state(1))
    futures.wait([checkpoints._saving])
    with pytest.raises(checkpoint.CheckpointError, match="step_00000001"):
        checkpoints.raise_failure()
    checkpoints.raise_failure()  # once


def test_save_returns_before_it_is_written(tmp_path, monkeypatch):
    release = threading.Event()
    original = safetensors_numpy.save_file

    def slow(arrays, path):
        release.wait(30)
        original(arrays, path)

    monkeypatch.setattr(safetensors_numpy, "save_file", slow)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    assert checkpoints.steps == []
    assert checkpoints.latest.endswith("step_00000001")
    release.set()
    checkpoints.wait()
    assert checkpoints.steps == [1]


@pytest.mark.parametrize("xla", [False, True])
@pytest.mark.parametrize("replicas", [1, 2])
def test_what_is_saved_does_not_change_with_the_variable(
    strategy_of, replicas, xla
):
    """The tensors are handed over, not copied, and updates follow at once."""
    strategy = strategy_of(replicas)
    with strategy.scope():
        variable = keras.Variable(np.ones([256, 256], np.float32))

    def add():
        variable.assign_add(tf.ones([256, 256]))

    add = tf.function(add, jit_compile=xla and replicas == 1)

    @tf.function
    def update():
        strategy.run(add)

    update()
    value = TensorFlowEngine(strategy).snapshot({"v": variable})["v"]
    for _ in range(5):
        update()
    np.testing.assert_array_equal(value, np.full([256, 256], 2.0))
    np.testing.assert_array_equal(variable, np.full([256, 256], 7.0))


def test_workers_that_do_not_write(tmp_path):
    checkpoints = saved(tmp_path, 5, writes=False)
    assert not (tmp_path / "checkpoints").exists()
    assert checkpoints.restore() is None


def test_a_missing_part_is_an_error(tmp_path):
    saved(tmp_path, 5)
    with pytest.raises(checkpoint.CheckpointError, match="features"):
        checkpoint.read_part(tmp_path, "features")
    manifest = tmp_path / "checkpoints/step_00000005/manifest.json"
    assert json.loads(manifest.read_text())["step"] == 5
