"""What the package may import, and what importing it must not."""

import ast
import itertools
import json
import os
import pathlib
import subprocess
import sys

import pytest

import keras_mixer
from keras_mixer.run import config as config_lib, recipes
from tests.conftest import ROOT

PACKAGE = ROOT / "keras_mixer"
# Imports go to a lower floor or stay on their own, and rooms form no circle.
FLOORS = {
    "run": 0,
    "weights": 1,
    "models": 1,
    "data": 1,
    "engines": 2,
    "evaluation": 2,
    "training": 2,
    "export": 3,
    "preflight": 3,
    "doctor": 3,
    "analysis": 3,
    "programs": 4,
}


def module_of(path: pathlib.Path) -> str:
    """Returns "weights.formats" for a file, "weights" for its `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


MODULES = {module_of(p): p for p in PACKAGE.rglob("*.py")}
del MODULES[""]  # the package itself, which imports nothing


def room_of(module: str) -> str:
    """Returns the room of a module; what -m starts belongs to programs."""
    is_started = module.endswith("__main__") or module == "predict"
    return "programs" if is_started else module.split(".")[0]


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
            assert name in MODULES, f"{module} imports {name}"
            found.add(name)
    return found


def assert_no_circle(graph: dict[str, set[str]]) -> None:
    graph = dict(graph)
    while graph:
        free = [m for m, needs in graph.items() if not needs & set(graph)]
        assert free, f"a circle among {sorted(graph)}"
        for module in free:
            del graph[module]


def run_python(code: str, **environment: str) -> str:
    """Returns the last line that a process of its own prints."""
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
    )
    return process.stdout.splitlines()[-1]


def test_the_package_is_its_rooms():
    files = {p.name for p in PACKAGE.glob("*.py")}
    assert files == {"__init__.py", "predict.py"}  # a function of its name
    assert {room_of(module) for module in MODULES} == set(FLOORS)
    for path in MODULES.values():  # without it, no part of the installation
        assert (path.parent / "__init__.py").exists(), path


@pytest.mark.parametrize("module", MODULES)
def test_imports_never_point_upward(module):
    for other in imports_of(module):
        assert FLOORS[room_of(other)] <= FLOORS[room_of(module)], other


def test_no_circle():
    graph = {module: imports_of(module) for module in MODULES}
    assert_no_circle(graph)  # inside a room, too
    rooms: dict[str, set[str]] = {room: set() for room in FLOORS}
    for module, needs in graph.items():
        room = room_of(module)
        rooms[room] |= {room_of(other) for other in needs} - {room}
    assert_no_circle(rooms)


@pytest.mark.parametrize(
    "module", [m for m in MODULES if room_of(m) in ("models", "weights")]
)
def test_models_need_keras_alone(module):
    allowed = {"keras", "numpy", "keras_mixer", *sys.stdlib_module_names}
    seen, left = set(), {module}
    while left:
        path = MODULES[name := left.pop()]
        seen.add(name)
        left |= imports_of(name) - seen
        libraries = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                libraries |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                libraries.add((node.module or "").split(".")[0])
        # Imported when a file of timm or a checkpoint is read.
        if name in ("weights.formats", "run.checkpoint"):
            libraries -= {"safetensors"}
        if name == "weights.hub":  # imported for an address of the Hub
            libraries -= {"huggingface_hub"}
        if name == "models.fused":  # Keras' backend already, where it asks
            libraries -= {"jax"}
        assert libraries <= allowed, name


def test_importing_the_package_imports_nothing_else():
    before = "import sys; before = set(sys.modules);"
    code = (
        before + "import keras_mixer, json;"
        "print(json.dumps([m for m in set(sys.modules) - before "
        "if m.split('.')[0] not in sys.stdlib_module_names]))"
    )
    assert json.loads(run_python(code)) == ["keras_mixer"]


@pytest.mark.parametrize("room", ["data", "export"])
def test_programs_of_a_room_start_without_tensorflow(room):
    """`python -m` imports the room first."""
    code = (
        f"import sys, keras_mixer.{room}, keras_mixer.programs.{room};"
        "print('tensorflow' in sys.modules)"
    )
    assert run_python(code) == "False"


@pytest.mark.parametrize("room", ["data", "export"])
def test_names_of_a_room(room):
    module = getattr(keras_mixer, room)
    declared = [
        name.asname
        for node in ast.walk(
            ast.parse((PACKAGE / room / "__init__.py").read_text())
        )
        if isinstance(node, ast.ImportFrom)
        and node.module.startswith(f"keras_mixer.{room}.")
        for name in node.names
    ]
    assert sorted(declared) == sorted(
        itertools.chain(*module._MODULES.values())
    )
    assert all(getattr(module, name) is not None for name in declared)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


def test_models_leave_data_libraries_alone():
    code = (
        "import sys, json, keras_mixer; keras_mixer.MixerS32;"
        "print(json.dumps([m for m in ('tensorflow_datasets', 'keras_cv', "
        "'omegaconf') if m in sys.modules]))"
    )
    assert json.loads(run_python(code)) == []


def test_public_names():
    for name in keras_mixer.__all__:
        assert getattr(keras_mixer, name) is not None
        assert name in dir(keras_mixer)
    for name, place in keras_mixer._PLACES.items():
        found = getattr(keras_mixer, name)
        assert found.__name__ in (f"keras_mixer.{place}", place.split(":")[-1])
    with pytest.raises(AttributeError, match="nonsense"):
        _ = keras_mixer.nonsense


@pytest.mark.parametrize(
    "imports", ["keras_mixer, keras", "keras, keras_mixer"]
)
def test_importing_the_package_registers_its_layers(imports):
    """Keras loads a saved model after `import keras_mixer` alone."""
    line = run_python(
        f"import {imports};"
        "print(keras.saving.get_registered_object('keras_mixer>MixerBlock'))",
        KERAS_BACKEND="numpy",
    )
    assert "keras_mixer.models.layers.MixerBlock" in line


@pytest.mark.parametrize(
    "imports", ["keras_mixer; keras_mixer.weights.get", "keras_mixer.weights"]
)
def test_weights_may_be_imported_first(imports):
    """Importing Keras there imports the models, which import the weights."""
    code = f"import {imports}; print('imported')"
    assert run_python(code, KERAS_BACKEND="numpy") == "imported"


def test_programs_are_quiet_and_libraries_change_no_environment():
    show = "import os; print(os.environ.get('TF_CPP_MIN_LOG_LEVEL'))"
    code = "import os; os.environ.pop('TF_CPP_MIN_LOG_LEVEL', None); import {};"
    # 1 is what jax sets, where it is installed.
    for module, levels in (
        ("keras_mixer.programs.doctor", ("2", "3")),
        ("keras_mixer", ("None", "1")),
    ):
        assert run_python(code.format(module) + show) in levels


@pytest.mark.parametrize("program", ["train", "eval", "analysis"])
def test_programs_choose_the_engine_before_keras_is_imported(program):
    """Keras reads its backend once; their help is made at every start."""
    code = (
        f"import sys; from keras_mixer.programs import {program} as program;"
        "getattr(program, 'help_text', str)();"
        "print('keras' in sys.modules)"
    )
    assert run_python(code) == "False"


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("train", ["--help"]),
        ("train", ["optim.lrr=1"]),
        ("train", ["--recipe=digit"]),
        ("train", ["fewshot.data=digits@a"]),
        ("eval", ["--help"]),
        ("eval", ["--weights=a.npz", "--model=b/16"]),
        ("eval", ["--workdir={run}", "optim.lr=1"]),
        ("eval", ["--workdir={run}", "--data=digits@a@b"]),
        ("eval", ["--workdir={run}", "--data=folder:/nowhere/at/all"]),
        ("export", ["--workdir={run}", "--output=o", "optim.lr=1"]),
        ("export", ["--workdir={run}", "--output=o", "--formats=onxx"]),
        ("analysis", ["scale", "--output=a.png", "--workdir=w", "a.b=1"]),
        ("analysis", ["weights", "--output=a.png", "--workdir=w", "a.b=1"]),
        ("analysis", ["cost", "--output=a.png", "--variants=B/17"]),
        ("analysis", ["cost", "--output=a.png", "--image_sizes=100"]),
        (
            "analysis",
            ["scale", "--output=a.png", "--workdir=w", "--fractions=2"],
        ),
        (
            "analysis",
            ["permutation", "--output=a.png", "--workdir=w", "--models=vgg"],
        ),
        ("analysis", ["compare", "w", "{run}", "--output=a.png"]),
        ("data", ["--output=a.png", "optim.lrr=1"]),
        ("predict", ["--help"]),
        ("predict", ["--workdir={run}", "nowhere.jpg"]),
        ("predict", ["--workdir={run}", "{run}", "--output=a.txt"]),
        ("predict", ["--workdir={run}", "{run}", "optim.lr=1"]),
        ("predict", ["--export={run}", "{run}"]),
        ("preflight", ["--help"]),
        ("preflight", ["--topology=v9"]),
    ],
)
def test_a_wrong_command_waits_for_no_library(program, arguments, tmp_path):
    (tmp_path / "classes.json").write_text("[]")
    config_lib.save(recipes.digits(), tmp_path / "config.json")
    arguments = [text.format(run=tmp_path) for text in arguments]
    code = (
        f"import sys; sys.argv = ['p', *{arguments!r}]\n"
        f"from keras_mixer.programs.{program} import run\n"
        "try: run()\n"
        "except SystemExit as end: assert end.code\n"
        "print([m for m in ('tensorflow', 'keras', 'jax') if m in sys.modules])"
    )
    assert run_python(code) == "[]"
