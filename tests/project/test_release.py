"""What a release says of itself agrees, and is in the wheel."""

import ast
import configparser
import re
import subprocess

import pytest
import yaml

import keras_mixer
from tests.conftest import ROOT

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
SOURCES = sorted((ROOT / "keras_mixer").rglob("*.py"))


def test_the_version_is_semantic_and_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+(rc\d+)?", keras_mixer.__version__)
    assert SETUP["metadata"]["version"] == "attr: keras_mixer.__version__"
    assert CITATION["version"] == keras_mixer.__version__


def test_the_changelog_has_the_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\] - (.+)$", text, re.MULTILINE)
    assert len(versions) == len(re.findall("^## ", text, re.MULTILINE))
    assert versions[0][0] == keras_mixer.__version__
    for _, date in versions:
        assert re.fullmatch(r"unreleased|\d{4}-\d{2}-\d{2}", date)
    sections = re.findall(r"^### (.+)$", text, re.MULTILINE)
    allowed = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
    assert sections
    assert set(sections) <= set(allowed)


def test_citation():
    """Software of the project, and the paper as README.md cites it."""
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["license"] == SETUP["metadata"]["license"]
    authors = [author["name"] for author in CITATION["authors"]]
    assert authors == [SETUP["metadata"]["author"]]
    [paper] = CITATION["references"]
    assert paper["url"] == "https://arxiv.org/abs/2105.01601"
    names = [
        f"{author['family-names']}, {author['given-names']}"
        for author in paper["authors"]
    ]
    assert len(names) == 12
    assert names[0] == "Tolstikhin, Ilya"
    cited = re.search(r"author += \{(.+?)\}", (ROOT / "README.md").read_text())
    assert cited is None or cited[1].split(" and ") == names


def test_classifiers_name_the_versions_of_python():
    found = SETUP["metadata"]["classifiers"].split("\n")
    python = "Programming Language :: Python :: 3."
    minor = [int(line[len(python) :]) for line in found if python in line]
    requires = SETUP["options"]["python_requires"]
    assert requires == f">=3.{minor[0]},<3.{minor[-1] + 1}"
    assert minor == list(range(minor[0], minor[-1] + 1))


def test_package_data_is_all_that_is_no_code():
    """A new file that is no module must be listed, or the wheel lacks it."""
    listed = SETUP["options.package_data"]["keras_mixer"].split()
    package = ROOT / "keras_mixer"
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert found == set(listed)


def test_every_folder_of_modules_is_a_package():
    """find: takes folders with an __init__.py alone."""
    for path in SOURCES:
        assert (path.parent / "__init__.py").exists(), path


def test_the_sdist_holds_every_tracked_file():
    """MANIFEST.in names each file of the clone, or a folder of it."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    )
    if tracked.returncode:
        pytest.skip("git does not read this clone")
    lines = (ROOT / "MANIFEST.in").read_text().splitlines()
    words = [line.split() for line in lines if line[:1] not in ("", "#")]
    folders = [f"{w[1]}/" for w in words if w[0] == "graft"]
    patterns = [p for w in words if w[0] == "include" for p in w[1:]]
    always = {"LICENSE", "MANIFEST.in", "pyproject.toml", "setup.cfg"}
    for name in tracked.stdout.splitlines():
        assert (
            name in always
            or name.startswith(("keras_mixer/", *folders))
            or ("/" not in name and any(map(_matcher(name), patterns)))
        ), name


def _matcher(name):
    return lambda pattern: re.fullmatch(
        re.escape(pattern).replace(r"\*", "[^/]*"), name
    )


def test_ci_runs_every_program_of_the_wheel():
    assert ".ci/smoke_wheel" in (ROOT / ".ci" / "run").read_text()
    script = (ROOT / ".ci" / "smoke_wheel").read_text()
    commands = SETUP["options.entry_points"]["console_scripts"].split()[::3]
    for name in commands:
        program = name.removeprefix("keras-mixer-")
        assert re.search(rf"^(run|refuse \S+) {program}\b", script, re.M), name


FORBIDDEN = (  # what SECURITY.md says that the package does not do
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal"),
    *("shelve", "shutil.unpack_archive", "tarfile", "os.system", "os.popen"),
    *("eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load"),
)


def is_forbidden(name: str) -> bool:
    return any(f"{name}.".startswith(f"{item}.") for item in FORBIDDEN)


def findings(tree: ast.AST) -> list[str]:
    """Returns what code imports or calls that SECURITY.md excludes."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if is_forbidden(a.name)]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in names if is_forbidden(name)]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if is_forbidden(called) or called.endswith(".extractall"):
                found.append(called)
            for word in node.keywords:
                value = ast.unparse(word.value)
                unsafe = {"allow_pickle": "False", "shell": "False"}
                if unsafe.get(word.arg or "", value) != value:
                    found.append(f"{called}({word.arg}={value})")
    return found


@pytest.mark.parametrize(
    "code",
    [
        *("import pickle", "from yaml import load", "eval('1')", "exec(x)"),
        *("np.load(f, allow_pickle=True)", "subprocess.run(x, shell=True)"),
        *("os.system('ls')", "archive.extractall()", "import marshal as m"),
    ],
)
def test_what_security_excludes_is_found(code):
    assert findings(ast.parse(code))


def test_what_security_excludes():
    found = {
        str(path): names
        for path in SOURCES
        if (names := findings(ast.parse(path.read_text())))
    }
    assert found == {}


def test_yaml_makes_no_objects(tmp_path):
    """A config that names a function of Python calls nothing."""
    from keras_mixer.run import config

    trace, file = tmp_path / "trace", tmp_path / "config.yaml"
    for call in (
        f"!!python/object/apply:os.mkdir ['{trace}']",
        f"!!python/object/new:os.mkdir ['{trace}']",
        "!!python/name:os.system",
    ):
        file.write_text(f"data:\n  name: {call}\n")
        with pytest.raises(config.ConfigError, match="line 2"):
            config.load(file)
        with pytest.raises(config.ConfigError, match="cannot read"):
            config.override(config.Config(), [f"optim.lr={call}"])
    assert not trace.exists()
