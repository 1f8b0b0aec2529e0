"""What the documents and the notebook name exists."""

import ast
import dataclasses
import importlib
import json
import re
import types

import pytest

import keras_mixer
from tests.conftest import ROOT

DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (
        *(ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"),
        ROOT / "benchmarks" / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
# What users read: the README and the pages of the site.
PAGES = {
    name: text
    for name, text in DOCUMENTS.items()
    if name == "README.md" or name.startswith("docs/")
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PROGRAM = r"(?:python|bin/python) (?:(train|eval)\.py|-m keras_mixer\.(\w+))"


def commands_of(text: str) -> list[tuple[str, str]]:
    """Returns (program, its arguments) of every command in the blocks."""
    found = []
    for kind, block in FENCE.findall(text):
        if kind:
            continue
        for line in re.split(r"\n|&&", block.replace("\\\n", " ")):
            for names in re.findall(PROGRAM, line):
                found.append(("".join(names), line))
    return found


def python_of(name: str) -> list[str]:
    """Returns the Python of a document, or of the cells of a notebook."""
    text = (ROOT / name).read_text()
    if name.endswith(".md"):
        return [code for kind, code in FENCE.findall(text) if kind == "python"]
    cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    lines = ["".join(cell["source"]) for cell in cells]
    return [re.sub(r"^%.*$", "", "\n".join(lines), flags=re.MULTILINE)]


def imported_by(tree: ast.AST) -> dict[str, object]:
    """Returns what code imports of keras_mixer, by the name it gives it."""
    found: dict[str, object] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            if any(alias.name == "keras_mixer" for alias in node.names):
                found["keras_mixer"] = keras_mixer
        elif isinstance(node, ast.ImportFrom):
            if not f"{node.module}.".startswith("keras_mixer."):
                continue
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                found[alias.asname or alias.name] = getattr(module, alias.name)
    return found


def heading_links(text: str) -> set[str]:
    """Returns the links that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    kept = [re.sub(r"[^\w\- ]", "", h.lower()) for h in headings]
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_names_in_text(document):
    # Modules are checked by test_the_reference_names_modules.
    text = re.sub(r"^::: .*$", "", DOCUMENTS[document], flags=re.MULTILINE)
    names = re.findall(r"\bkeras_mixer(?:\.[A-Za-z_]\w*)+", text)
    for name in set(names):
        found: object = keras_mixer
        for part in name.split(".")[1:]:
            assert hasattr(found, part), f"{document} names {name}"
            found = getattr(found, part)


@pytest.mark.parametrize("name", [*PAGES, "notebooks/colab_tpu.ipynb"])
def test_names_in_code(name):
    """Of keras_mixer; whatever is imported of it must have its attributes."""
    seen = 0
    least = {"docs/models.md": 5, "notebooks/colab_tpu.ipynb": 5}.get(name, 0)
    for code in python_of(name):
        tree = ast.parse(code)
        imported = imported_by(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            owner = node.value
            if isinstance(owner, ast.Name) and owner.id in imported:
                found = imported[owner.id]
                if isinstance(found, types.ModuleType):
                    assert hasattr(found, node.attr), f"{owner.id}.{node.attr}"
                    seen += 1
    assert seen >= least


def test_commands_and_their_flags():
    seen = set()
    for name, line in commands_of("\n".join(PAGES.values())):
        seen.add(name)
        if name not in ("train", "eval"):
            file = "predict.py" if name == "predict" else f"{name}/__main__.py"
            assert (ROOT / "keras_mixer" / file).exists()
        sources = [
            (ROOT / "keras_mixer" / "programs" / file).read_text()
            for file in (f"{name}.py", "flags.py")
        ]
        for flag in re.findall(r" '?--(\w+)", line.partition(name)[2]):
            defined = re.search(rf'"(--)?{flag}"', "".join(sources))
            assert defined or flag == "help", f"{line}: --{flag}"
    assert seen == {
        *("train", "eval", "analysis", "data"),
        *("doctor", "export", "predict", "preflight"),
    }


def test_fields_of_the_config():
    from keras_mixer.run.config import Config

    sections = {f.name: f.type for f in dataclasses.fields(Config)}
    pattern = rf"\b({'|'.join(sections)})\.(\w+)="
    found = set(re.findall(pattern, "\n".join(PAGES.values())))
    assert len(found) > 30
    config = Config()
    for section, field in found:
        assert hasattr(getattr(config, section), field), f"{section}.{field}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 6000


def test_the_site_has_every_page():
    """The pages of mkdocs.yml are the files of docs/, each once."""
    text = (ROOT / "mkdocs.yml").read_text()
    pages = re.findall(r": (\w+\.md)$", text, re.MULTILINE)
    assert sorted(pages) == sorted(p.name for p in (ROOT / "docs").glob("*.md"))


def test_the_reference_names_modules():
    found = re.findall(r"^::: (\S+)$", DOCUMENTS["docs/api.md"], re.MULTILINE)
    assert len(found) > 10
    for name in found:
        parts = name.split(".")
        if parts[-1][0].isupper():  # a class or a function of the module
            parts.pop()
        path = ROOT.joinpath(*parts)
        assert path.is_dir() or path.with_suffix(".py").exists(), name


def literals_of_the_package() -> str:
    """Returns all texts of the code, an f-string's values as `...`."""
    found = []
    for path in (ROOT / "keras_mixer").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(
                        str(part.value)
                        if isinstance(part, ast.Constant)
                        else "..."
                        for part in node.values
                    )
                )
            elif isinstance(node, ast.Constant):
                found.append(str(node.value))
    return "\n".join(found)


def test_the_messages_of_troubleshooting_are_those_of_the_code():
    """Each heading's parts between `...`, quotes and numbers."""
    text = DOCUMENTS["docs/troubleshooting.md"]
    messages = re.findall(r"^### `(.*)`$", text, re.MULTILINE)
    assert len(messages) > 20
    code = literals_of_the_package()
    for message in messages:
        parts = re.split(r"\.\.\.|'[^']*'|\d+|\w+://|=\w+", message)
        parts = [part.strip(" :(),") for part in parts]
        assert len(max(parts, key=len)) > 8, message
        for part in parts:
            assert len(part) < 4 or part in code, (message, part)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_and_links(document):
    text = FENCE.sub("", DOCUMENTS[document])
    folder = (ROOT / document).parent
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = folder / path if path else ROOT / document
        assert file.exists(), target
        if anchor:
            assert anchor in heading_links(file.read_text()), target
    folders = r"(?:keras_mixer|tests|benchmarks|notebooks|docs)"
    for path in re.findall(rf"`({folders}/[\w./]*)`", text):
        assert (ROOT / path).exists(), f"{document} names {path}"
