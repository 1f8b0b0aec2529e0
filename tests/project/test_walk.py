"""Every command and snippet of the README and the pages, as a reader types it.

What cannot run here is marked above its block: `<!-- needs: a TPU -->`. The
rest runs in the order of the pages, in one folder that has what the pages
speak of: `photos/`, `cat.jpg` and `dog.jpg`.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT

BLOCK = re.compile(
    r"^(?:<!-- needs: ([^>]*) -->\n)?```(\w*)\n(.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
# A block without a language is of commands if a line begins like one.
COMMAND = re.compile(
    r"^\s*!?(?:cd|python3?|pip|git|gcloud|docker|curl|echo|mkdir|srun)\b",
    re.MULTILINE,
)
# What the snippets of a page expect.
BEFORE = {
    "docs/fewshot.md": (
        "import numpy as np\n"
        "draw = np.random.default_rng(0)\n"
        "train_labels, test_labels = np.arange(300) % 10, np.arange(70) % 10\n"
        "train_features = np.eye(10)[train_labels] + draw.random((300, 10))\n"
        "test_features = np.eye(10)[test_labels] + draw.random((70, 10))\n"
    ),
}
# What they leave, as the page says.
AFTER = {
    "docs/fewshot.md": (
        "assert accuracy > 0.9 and table.shape == (4, 2, 3), table\n"
    ),
    "docs/models.md": (
        "assert features.output_shape == (None, 768)\n"
        "assert small.output_shape == (None, 10)\n"
    ),
    "docs/export.md": "assert probabilities.shape == (1, 10)\n",
}


def page_names():
    """Returns the README and the pages in the order of the site."""
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    return ["README.md", *(f"docs/{p}" for p in re.findall(r"\w+\.md", nav))]


def blocks_of(name):
    """Returns the blocks of commands and of Python: need, kind and text."""
    found = []
    for need, kind, text in BLOCK.findall((ROOT / name).read_text()):
        if kind == "python":
            found.append((need, kind, text))
        elif not kind and COMMAND.search(text):
            found.append((need, "bash", text))
    return found


def test_the_marks():
    """Each is read, and what needs nothing is most of the pages' subject."""
    blocks = [block for name in page_names() for block in blocks_of(name)]
    pages = [(ROOT / name).read_text() for name in page_names()]
    marks = sum(page.count("<!-- needs: ") for page in pages)
    assert marks == sum(bool(need) for need, _, _ in blocks)
    free = [text for need, kind, text in blocks if not need]
    assert len(free) > 25
    for program in (
        *("train.py", "eval.py", "export", "predict", "data"),
        *("doctor", "analysis"),
    ):
        assert any(program in text for text in free), program


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walk")
    for name in ("train.py", "eval.py"):
        (folder / name).symlink_to(ROOT / name)
    draw = np.random.default_rng(0)
    for i, name in enumerate(("ants", "bees")):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(24):
            pixels = draw.integers(0, 120, (96, 80, 3)) + 120 * i
            photo = Image.fromarray(pixels.astype(np.uint8))
            photo.save(folder / "photos" / name / f"{number}.jpg")
    photo.save(folder / "photos" / "bees" / "PHOTO.jpg")
    for name in ("cat.jpg", "dog.jpg"):
        photo.save(folder / name)
    return folder


def run_block(kind, text, folder):
    environment = {
        **os.environ,
        "HOME": str(folder),  # of ~/photos
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("KERAS_BACKEND", None)
    command = ["bash", "-euo", "pipefail", "-c", text]
    if kind == "python":
        command = [sys.executable, "-c", text]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True
    )
    if kind == "bash" and "--help" in text and done.returncode == 1:
        return  # absl ends --help with 1
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("name", page_names())
def test_what_a_page_says_to_type(name, here):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("jax")
    if name == "docs/export.md":  # it speaks of the first version
        shutil.rmtree(here / "served")
    blocks = [b for b in blocks_of(name) if not b[0]]
    for _, kind, text in blocks:
        if kind == "bash":
            run_block(kind, text, here)
    snippets = [text for _, kind, text in blocks if kind == "python"]
    if snippets:
        code = "\n".join([BEFORE.get(name, ""), *snippets, AFTER.get(name, "")])
        run_block("python", code, here)
