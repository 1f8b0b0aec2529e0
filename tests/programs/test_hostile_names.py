"""A stranger's workdir, whose names are paths: nothing leaves its folder."""

import json
import pathlib
import shutil

import numpy as np
from PIL import Image

from keras_mixer.export import fresh

NAMES = [
    *("../../up", "/tmp/absolute", "~/home", "a/b", "..", ".", ""),
    *("C:\\\\evil", "..\\\\..\\\\up", "$(touch x) `touch y` ;rm -rf *"),
]


def tree(folder: pathlib.Path) -> dict[str, bytes]:
    """Returns the files below a folder, with their content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_class_names_that_are_paths(
    run_here, digits_workdir, tmp_path, monkeypatch
):
    # Without the fresh process, which other tests start.
    nothing = {"largest_differences": {"serve_bytes/logits": 0.0}}
    monkeypatch.setattr(fresh, "check", lambda *_, **__: nothing)
    house = tmp_path / "house"
    work = house / "inner" / "work"
    shutil.copytree(digits_workdir, work)
    (work / "classes.json").write_text(json.dumps(NAMES))
    (house / "other.txt").write_text("mine")
    Image.fromarray(np.zeros([8, 8, 3], np.uint8)).save(house / "a.png")
    before, run = tree(house), tree(work)
    outputs = tmp_path / "outputs"
    flag = f"--workdir={work}"
    done = run_here(
        *("eval.py", flag, f"--per_class={outputs / 'classes.csv'}"),
        fails=True,
    )
    assert "class 0 is '0', not '../../up'" in done.stderr
    run_here("keras_mixer.export", flag, f"--output={outputs / 'served'}")
    run_here("keras_mixer.export", flag, f"--hub={outputs / 'pushed'}")
    for source in (flag, f"--export={outputs / 'served'}"):
        done = run_here(
            *("keras_mixer.predict", source, str(house / "a.png")),
            f"--output={outputs / 'predicted.csv'}",
            f"--picture={outputs / 'predicted.png'}",
        )
        assert done.code in (0, None), done.stderr
    assert tree(work) == run
    assert tree(house) == before
    assert {path.name for path in tmp_path.iterdir()} == {"house", "outputs"}
    written = {path.parts[0] for path in map(pathlib.Path, tree(outputs))}
    assert written == {"served", "pushed", "predicted.csv", "predicted.png"}
    assert not pathlib.Path("/tmp/absolute").exists()
