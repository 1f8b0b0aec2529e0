"""The notebook runs from top to bottom on JAX, and is saved with outputs."""

import ast
import configparser
import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

NOTEBOOKS = ROOT / "notebooks"
SAVED = NOTEBOOKS / "colab_tpu.ipynb"
PICTURES = 3  # contact sheet, curves, predictions
LAST = "The reloaded model answers as the trained one does."


def code_cells(path):
    cells = json.loads(path.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def outputs_of(path):
    return [output for cell in code_cells(path) for output in cell["outputs"]]


def text_of(path):
    """Returns all the text that a notebook printed."""
    parts = []
    for output in outputs_of(path):
        found = output.get("data", {"text": output.get("text", "")})
        parts += [
            "".join(value)
            for kind, value in found.items()
            if not kind.startswith("image/")
        ]
    return "\n".join(parts)


def assert_whole(path):
    """Every cell ran, in order and without an error, and drew its pictures.

    Keras ran on JAX.
    """
    cells = code_cells(path)
    numbers = [cell["execution_count"] for cell in cells]
    assert numbers == list(range(1, len(cells) + 1))
    outputs = outputs_of(path)
    assert [o for o in outputs if o["output_type"] == "error"] == []
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == PICTURES
    for picture in pictures:
        assert len(picture["data"]["image/png"]) > 5000, "it is blank"
    assert LAST in text_of(path)
    assert "JAX, 1 replica on CPU" in text_of(path)


def run(output, *values, fails=False):
    settings = [f"--set={value}" for value in values]
    command = [NOTEBOOKS / "run.py", f"--output={output}", *settings]
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True
    )
    assert (done.returncode != 0) == fails, done.stderr[-5000:]
    return done.stderr


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    pytest.importorskip("jax")
    before = SAVED.read_bytes()
    output, workdir = tmp_path / "ran.ipynb", tmp_path / "run"
    run(output, "EPOCHS=10", f"WORKDIR={str(workdir)!r}")
    assert_whole(output)
    result = json.loads((workdir / "result.json").read_text())
    assert result["count"] == 360
    assert result["accuracy"] > 0.8  # 0.90 measured
    text = text_of(output)
    right = round(result["accuracy"] * 360)
    assert f"{right} of 360 right" in text
    assert f"Accuracy before: {result['accuracy']:.4f}" in text
    assert f"Accuracy after: {result['accuracy']:.4f}" in text
    assert "| trained Mixer " in text
    assert (workdir / "served" / "1" / "saved_model.pb").exists()
    assert SAVED.read_bytes() == before
    assert [p.name for p in NOTEBOOKS.iterdir() if p.name == "runs"] == []


def test_an_error_ends_it_and_is_saved(tmp_path):
    """In the cell after the settings, before anything is imported."""
    output = tmp_path / "ran.ipynb"
    stderr = run(output, "raise OSError('the disk is full')", fails=True)
    assert "the disk is full" in stderr
    (error,) = (o for o in outputs_of(output) if o["output_type"] == "error")
    assert error["ename"] == "OSError"
    assert [c["execution_count"] for c in code_cells(output)][2:] == [None] * (
        len(code_cells(output)) - 2
    )


@pytest.mark.parametrize("inner", ["", "photos/"])
def test_photos_may_be_a_folder_or_a_zip_file(tmp_path, inner):
    (source,) = (
        ast.unparse(node)
        for cell in code_cells(SAVED)
        for node in ast.parse(
            re.sub("(?m)^%.*$", "", "".join(cell["source"]))
        ).body
        if getattr(node, "name", None) == "folder_of"
    )
    found: dict = {"pathlib": pathlib, "shutil": shutil}
    exec(source, found)
    for name in ("ants/1.jpg", "bees/1.jpg", "__MACOSX/1"):
        file = tmp_path / "mine" / (inner if name[0] != "_" else "") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    archive = shutil.make_archive(tmp_path / "a", "zip", tmp_path / "mine")
    for given, folder in ((archive, "a"), (tmp_path / "mine", "mine")):
        got = found["folder_of"](str(given))
        assert got == tmp_path / folder / inner


def test_what_is_saved_is_what_ran():
    assert_whole(SAVED)
    assert SAVED.stat().st_size < 1_500_000
    (accuracy,) = (
        float(line.split(": ")[1].split(",")[0])
        for line in text_of(SAVED).splitlines()
        if line.startswith("Accuracy on 360 test images")
    )
    assert accuracy > 0.96
    for folder in {"/tmp/", "/home/", str(ROOT), str(pathlib.Path.home())}:
        assert folder not in text_of(SAVED), "the path of a machine"
    for cell in code_cells(SAVED):
        assert "execution" not in cell["metadata"], "times change every run"


def code_of(path):
    """Returns the code of all cells, without lines for IPython."""
    cells = ["".join(cell["source"]) for cell in code_cells(path)]
    return re.sub(r"^%.*\n", "", "\n".join(cells), flags=re.MULTILINE)


def test_the_backend_is_set_before_anything_imports_keras():
    nodes = list(ast.walk(ast.parse(code_of(SAVED))))
    setting = 'os.environ["KERAS_BACKEND"] = "jax"'
    [at] = (
        node.lineno
        for node in nodes
        if isinstance(node, ast.Assign)
        and ast.unparse(node).replace("'", '"') == setting
    )
    imports = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        else:
            continue
        for name in names:
            root = name.partition(".")[0]
            imports[root] = min(node.lineno, imports.get(root, node.lineno))
    for name in ("keras", "keras_mixer", "jax", "tensorflow"):
        assert imports[name] > at, f"{name} is imported too early"


def test_what_the_notebook_installs():
    """Extras that there are; nothing is removed and no file is needed."""
    code = code_of(SAVED)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    [extras] = re.findall(r'"\.\[([\w,]+)\]"', code)
    assert set(extras.split(",")) <= set(setup["options.extras_require"])
    assert "jax" in extras.split(",")
    assert "uninstall" not in code
    assert "requirements" not in code
