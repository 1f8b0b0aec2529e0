"""Says before a TPU is rented whether a run fits it, and how fast it can be.

`lowering` makes a program of the trainer's own step. `compiler` gives it to
the TPU compiler, which needs no TPU. `traffic` reads the compiled program,
`chips` knows the hardware, and `report` turns all of it into figures and a
table.
"""

import importlib
from typing import Any

# Imported when they are first used: `lowering` needs TensorFlow.
_MODULE_OF = {
    "CHIPS": "chips",
    "Figures": "report",
    "PreflightError": "compiler",
    "Subject": "lowering",
    "Topology": "chips",
    "find_largest": "report",
    "measure": "report",
    "parse_topology": "chips",
    "resolve": "lowering",
    "to_text": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULE_OF[name]}")
    return getattr(module, name)
