"""A server sees whole versions alone, whoever writes and dies."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import tensorflow as tf

from keras_mixer import export
from keras_mixer.export import versions
from keras_mixer.run import files
from tests.conftest import ROOT
from tests.export.small_model import call, picture


def visible(output):
    """What a server sees: folders whose names are numbers."""
    return sorted(p.name for p in output.iterdir() if p.name.isdecimal())


def test_versions_of_concurrent_exports(tmp_path):
    """Each gets a number of its own, and what it wrote."""
    (tmp_path / "7").mkdir()
    (tmp_path / "notes").mkdir()
    barrier = threading.Barrier(12)
    published = {}

    def write(i):
        with versions.draft(tmp_path) as folder:
            (folder / "who").write_text(str(i))
            (folder / "sub").mkdir()
            barrier.wait()
            published[i] = versions.publish(folder)

    threads = [threading.Thread(target=write, args=[i]) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(p.name) for p in published.values()) == list(range(8, 20))
    for i, path in published.items():
        assert (path / "who").read_text() == str(i)
    assert not list(tmp_path.glob(".*"))


def test_a_version_is_on_the_disk_before_it_appears(tmp_path, monkeypatch):
    events = []
    sync, rename = files.sync, os.rename

    def note_sync(path):
        sync(path)
        events.append(os.path.relpath(path, tmp_path))

    def note_rename(source, target):
        rename(source, target)
        events.append("renamed")

    monkeypatch.setattr(files, "sync", note_sync)
    monkeypatch.setattr(os, "rename", note_rename)
    with versions.draft(tmp_path) as folder:
        (folder / "variables").mkdir()
        (folder / "variables" / "data").write_text("x")
        (folder / "saved_model.pb").write_text("x")
        versions.publish(folder)
    draft, end = folder.name, events.index("renamed")
    assert sorted(events[:end]) == [
        draft,
        f"{draft}/saved_model.pb",
        f"{draft}/variables",
        f"{draft}/variables/data",
    ]
    assert events[end - 1] == draft  # a folder after what is in it
    assert events[end + 1 :] == ["."]


def test_only_what_the_dead_left_is_removed(tmp_path):
    left = tmp_path / ".exporting-0123"
    (left / "variables").mkdir(parents=True)
    other = tmp_path / ".mine"
    other.mkdir()
    with versions.draft(tmp_path) as alive:
        assert not left.exists()
        (alive / "x").write_text("")
        with versions.draft(tmp_path) as second:
            assert (alive / "x").exists()
        assert not second.exists()
    assert [p.name for p in tmp_path.iterdir()] == [".mine"]


# Exports random weights again and again. The arguments are the folder, whether
# the SavedModel is checked, and the formats.
_ENDLESS = """
import sys
from tests.export.small_model import make_model, POLICY
from keras_mixer import export
from keras_mixer.export import fresh
if sys.argv[2] == "unchecked":
    fresh.check = lambda *_, **__: {}
model = make_model()
while True:
    path = export.export(
        model,
        sys.argv[1],
        eval_policy=POLICY,
        formats=sys.argv[3].split(","),
    )
    print(path, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["draft", "saved", "checked", "litert"])
def test_a_killed_export_leaves_whole_versions(when, tmp_path):
    """SIGKILL while a version is being written; then the next export."""
    names = {"savedmodel"}
    if when == "litert":
        pytest.importorskip("ai_edge_litert")
        names.add(when)
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            _ENDLESS,
            tmp_path,
            "checked" if when == "checked" else "unchecked",
            ",".join(sorted(names, reverse=True)),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        first = process.stdout.readline().decode().strip()
        assert first == str(tmp_path / "1")
        pattern = (
            ".exporting-*"
            + {
                "draft": "",
                "saved": "/variables/*",
                "checked": "/saved_model.pb",
                "litert": "/model.tflite",
            }[when]
        )
        while not list(tmp_path.glob(pattern)):
            time.sleep(0.001)
        if when == "checked":
            time.sleep(1)  # the fresh process runs
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert list(tmp_path.glob(".exporting-*/*")) or when == "draft"
    assert list(tmp_path.glob(".exporting-*"))
    seen = visible(tmp_path)
    assert "1" in seen
    for name in seen:
        folder = tmp_path / name
        served = tf.saved_model.load(str(folder))
        call(served, "serving_default", picture()[None])
        card = export.read_card(folder)
        assert set(card["formats"]) == names
        for entry in card["formats"].values():
            assert all((folder / file).exists() for file in entry["sha256"])
    with versions.draft(tmp_path) as folder:
        (folder / "x").write_text("")
        path = versions.publish(folder)
    assert path.name == str(len(seen) + 1)
    assert not list(tmp_path.glob(".*"))
