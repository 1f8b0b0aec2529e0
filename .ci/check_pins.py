"""Ends with an error unless the pins of a requirements file are installed.

    python .ci/check_pins.py requirements-colab.txt

A later `pip install` may have replaced what the file had installed.
"""

import importlib.metadata
import pathlib
import sys

from packaging.requirements import Requirement


def find_broken(lines: list[str]) -> list[str]:
    """Returns a line for each pin that does not hold."""
    broken = []
    for line in lines:
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is not None and not pin.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(pin.name)
        except importlib.metadata.PackageNotFoundError:
            broken.append(f"{line}: missing")
            continue
        if version not in pin.specifier:
            broken.append(f"{line}: {version} is installed")
    return broken


if __name__ == "__main__":
    found = find_broken(pathlib.Path(sys.argv[1]).read_text().splitlines())
    sys.exit("\n".join(found) or None)
