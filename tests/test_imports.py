"""What the package may import, and what importing it must not."""

import ast
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# HOUSE: imports go from a higher tier to a lower one, or sideways, never up.
TIERS = {
    "fused": 0,
    "layers": 0,
    "config": 0,
    "images": 0,
    "kerascv": 0,
    "randaugment": 0,
    "objective": 0,
    "optim": 0,
    "distribute": 0,
    "draws": 0,
    "fewshot": 0,
    "hosts": 0,
    "paper": 0,
    "permutations": 0,
    "pictures": 0,
    "checkpoint": 0,
    "preemption": 0,
    "progress": 0,
    "models": 1,
    "weights": 1,
    "recipes": 1,
    "data": 1,
    "step": 1,
    "workdir": 1,
    "contact_sheet": 2,
    "trainer": 2,
    "evaluate": 2,
    "export": 2,
    "preflight": 2,
    "doctor": 2,
    "analysis": 2,
    "train": 3,
    "eval": 3,
}
KERAS_ONLY = ("fused", "layers", "checkpoint", "models", "weights")


PACKAGE = ROOT / "keras_mixer"


def modules_of(room: str) -> dict[str, pathlib.Path]:
    """Returns the files of a room by module: one, or those of a subpackage.

    `weights/__init__.py` is the module "weights", `weights/formats.py` is
    "weights.formats".
    """
    if not (PACKAGE / room).is_dir():
        return {room: PACKAGE / f"{room}.py"}
    modules = {}
    for path in (PACKAGE / room).rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(p for p in parts if p != "__init__")
        modules[name] = path
    return modules


MODULES = {m: path for room in TIERS for m, path in modules_of(room).items()}


def room_of(module: str) -> str:
    """Returns the room of a module; a program is one of its own."""
    return module if module.endswith("__main__") else module.split(".")[0]


def tier_of(module: str) -> int:
    return 3 if module.endswith("__main__") else TIERS[room_of(module)]


def imports_of(module: str) -> set[str]:
    """Returns the modules of keras_mixer that a module imports, anywhere."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if not name.startswith("keras_mixer."):
                continue
            name = name.removeprefix("keras_mixer.")
            # What is no module is a name out of one.
            while name not in MODULES and "." in name:
                name = name.rpartition(".")[0]
            found.add(name)
    return found


def assert_no_circle(graph: dict[str, set[str]]) -> None:
    graph = dict(graph)
    while graph:
        free = [m for m, needs in graph.items() if not needs & set(graph)]
        assert free, f"a circle among {sorted(graph)}"
        for module in free:
            del graph[module]


def test_every_module_has_a_tier():
    files = {p.stem for p in PACKAGE.glob("*.py")} - {"__init__"}
    folders = {p.relative_to(PACKAGE).parts[0] for p in PACKAGE.rglob("*/*.py")}
    assert not files & folders
    assert files | folders == set(TIERS)
    for path in MODULES.values():  # without it, no part of the installation
        assert (path.parent / "__init__.py").exists(), path


@pytest.mark.parametrize("module", MODULES)
def test_imports_never_point_upward(module):
    for other in imports_of(module):
        assert tier_of(other) <= tier_of(module), f"{module} imports {other}"


def test_no_circle():
    graph = {module: imports_of(module) for module in MODULES}
    assert_no_circle(graph)  # inside a room, too
    rooms: dict[str, set[str]] = {room_of(module): set() for module in MODULES}
    for module, needs in graph.items():
        room = room_of(module)
        rooms[room] |= {room_of(other) for other in needs} - {room}
    assert_no_circle(rooms)


@pytest.mark.parametrize(
    "module", [m for m in MODULES if room_of(m) in KERAS_ONLY]
)
def test_models_need_keras_alone(module):
    allowed = {"keras", "numpy", "keras_mixer", "typing", "collections"}
    allowed |= set(sys.stdlib_module_names)
    # Imported when a file of timm or a checkpoint is read.
    if module in ("weights.formats", "checkpoint"):
        allowed |= {"safetensors"}
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        assert {n.split(".")[0] for n in names} <= allowed
    assert {room_of(m) for m in imports_of(module)} <= set(KERAS_ONLY)


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
        assert name in MODULES, name


def test_importing_the_package_registers_its_layers():
    """Keras loads a saved model after `import keras_mixer` alone."""
    code = (
        "import keras_mixer, keras;"
        "print(keras.saving.get_registered_object('keras_mixer>MixerBlock'))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert "keras_mixer.layers.MixerBlock" in process.stdout


@pytest.mark.parametrize(
    ("argv", "orig_argv", "program"),
    [
        (["-m", "a"], ["python", "-m", "keras_mixer.export", "a"], "export"),
        (["-m"], ["python", "-mkeras_mixer.doctor"], "doctor"),
        (["/bin/keras-mixer-eval"], ["python", "x"], "keras-mixer-eval"),
        (["-m"], ["python", "-m", "pytest", "tests"], None),
        (["mine.py"], ["python", "mine.py", "keras_mixer.doctor"], None),
        ([], [], None),
    ],
)
def test_which_program_starts(monkeypatch, argv, orig_argv, program):
    import keras_mixer

    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert keras_mixer._program() == program


def test_programs_are_quiet_and_libraries_change_no_environment():
    """The doctor, which imports no TensorFlow, and the package itself."""
    code = (
        "import os, sys; sys.argv[0] = '-m'; sys.orig_argv += {extra};"
        "import keras_mixer;"
        "print(os.environ.get('TF_CPP_MIN_LOG_LEVEL'))"
    )
    environment = dict(os.environ)
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    # 1 is what jax sets, where it is installed.
    for extra, levels in (
        ("['keras_mixer.doctor']", ("2", "3")),
        ("[]", ("None", "1")),
    ):
        process = subprocess.run(
            [sys.executable, "-c", code.format(extra=extra)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
            env=environment,
        )
        assert process.stdout.splitlines()[-1] in levels
