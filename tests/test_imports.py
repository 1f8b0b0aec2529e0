"""What the package may import, and what importing it must not."""

import ast
import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# HOUSE: imports go from a higher tier to a lower one, or sideways, never up.
TIERS = {
    "layers": 0,
    "config": 0,
    "images": 0,
    "objective": 0,
    "optim": 0,
    "distribute": 0,
    "checkpoint": 0,
    "progress": 0,
    "models": 1,
    "weights": 1,
    "recipes": 1,
    "data": 1,
    "workdir": 1,
    "trainer": 2,
    "evaluate": 2,
    "train": 3,
    "eval": 3,
}
KERAS_ONLY = ("layers", "models", "weights")


def imports_of(module: str) -> set[str]:
    """Returns the modules of keras_mixer that a module imports, anywhere."""
    tree = ast.parse((ROOT / "keras_mixer" / f"{module}.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "keras_mixer":
            names = [f"keras_mixer.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports in full"
            names = [node.module or ""]
        else:
            continue
        found |= {
            n.split(".")[1] for n in names if n.startswith("keras_mixer.")
        }
    return found


def test_every_module_has_a_tier():
    modules = {p.stem for p in (ROOT / "keras_mixer").glob("*.py")}
    assert modules - {"__init__"} == set(TIERS)


@pytest.mark.parametrize("module", TIERS)
def test_imports_never_point_upward(module):
    for other in imports_of(module):
        assert TIERS[other] <= TIERS[module], f"{module} imports {other}"


def test_no_circle():
    graph = {module: imports_of(module) for module in TIERS}
    while graph:
        free = [m for m, needs in graph.items() if not needs & set(graph)]
        assert free, f"a circle among {sorted(graph)}"
        for module in free:
            del graph[module]


@pytest.mark.parametrize("module", KERAS_ONLY)
def test_models_need_keras_alone(module):
    tree = ast.parse((ROOT / "keras_mixer" / f"{module}.py").read_text())
    allowed = {"keras", "numpy", "keras_mixer", "typing", "collections"}
    allowed |= set(sys.stdlib_module_names)
    # Imported when a file of timm is read, and asked for then.
    allowed |= {"safetensors"} if module == "weights" else set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        assert {n.split(".")[0] for n in names} <= allowed


def test_importing_the_package_leaves_data_libraries_alone():
    code = (
        "import sys, json, keras_mixer; keras_mixer.MixerS32;"
        "print(json.dumps([m for m in ('tensorflow_datasets', 'keras_cv', "
        "'omegaconf') if m in sys.modules]))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    ).stdout
    assert json.loads(out.splitlines()[-1]) == []


def test_lazy_modules_and_unknown_attributes():
    import keras_mixer

    assert keras_mixer.config.Config is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = keras_mixer.nonsense
    for name in keras_mixer._LAZY_MODULES:
        assert (ROOT / "keras_mixer" / f"{name}.py").exists(), name
