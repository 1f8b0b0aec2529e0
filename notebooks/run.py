"""Runs a notebook from top to bottom, and saves it with its pictures.

    python notebooks/run.py                     # what is committed
    python notebooks/run.py --output=/tmp/a.ipynb \\
        --set EPOCHS=10 --set 'WORKDIR="/tmp/run"'

Each --set adds an assignment after the cell of settings, which has the tag
"parameters". The notebook runs in a kernel of this Python, in a temporary
folder. The first error ends it and is saved with it.
"""

import argparse
import os
import pathlib
import re
import sys
import tempfile

os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")  # or it warns

import nbclient
import nbformat

HERE = pathlib.Path(__file__).resolve().parent
NOTEBOOK = HERE / "colab_tpu.ipynb"
_SECONDS = 3600  # for a cell
# TensorFlow logs this on import, at any TF_CPP_MIN_LOG_LEVEL.
_LOG = re.compile(
    r"^(WARNING: All log messages before absl|I\d{4} ).*\n?", re.MULTILINE
)


def set_values(notebook: nbformat.NotebookNode, values: list[str]) -> None:
    """Adds a cell of assignments after the settings."""
    if not values:
        return
    (at,) = (
        i
        for i, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", [])
    )
    cell = nbformat.v4.new_code_cell("\n".join(values))
    notebook.cells.insert(at + 1, cell)


def clear(notebook: nbformat.NotebookNode) -> None:
    """Drops the outputs of an earlier run."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def execute(notebook: nbformat.NotebookNode) -> None:
    """Runs all cells and keeps their outputs, up to the first error.

    Raises:
      nbclient.exceptions.CellExecutionError: A cell failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        client = nbclient.NotebookClient(
            notebook,
            timeout=_SECONDS,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute(cwd=folder)


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Drops what depends on the machine, and TensorFlow's log."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                output.text = _LOG.sub("", output.text)
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if o.get("text") != ""]
    notebook.metadata.language_info = {"name": "python"}
    notebook.metadata.kernelspec = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--notebook", type=pathlib.Path, default=NOTEBOOK)
    parser.add_argument("--output", type=pathlib.Path, help="default: in place")
    parser.add_argument("--set", action="append", default=[], dest="values")
    options = parser.parse_args()
    if options.values and options.output is None:
        parser.error("--set changes the notebook: give --output, too")
    notebook = nbformat.read(options.notebook, as_version=4)
    clear(notebook)
    set_values(notebook, options.values)
    # So that the kernel finds a clone that is not installed.
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    # A failed run does not replace the notebook.
    failed = options.output or options.notebook.with_suffix(".failed.ipynb")
    try:
        execute(notebook)
    except Exception as error:  # in a cell, or the kernel did not start
        tidy(notebook)
        nbformat.write(notebook, failed)
        sys.exit(f"{error}\nThe cells up to the error are in {failed}")
    tidy(notebook)
    nbformat.write(notebook, options.output or options.notebook)


if __name__ == "__main__":
    main()
