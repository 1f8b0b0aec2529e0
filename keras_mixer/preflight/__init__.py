"""Says before a TPU is rented whether a run fits it, and how fast it can be.

`lowering` makes a program of the trainer's own step. `compiler` gives it to
the TPU compiler, which needs no TPU. `traffic` reads the compiled program,
`chips` knows the hardware, and `report` turns all of it into figures and a
table.
"""

from keras_mixer.preflight.chips import CHIPS, Topology, parse_topology
from keras_mixer.preflight.compiler import PreflightError
from keras_mixer.preflight.lowering import Subject, resolve
from keras_mixer.preflight.report import Figures, find_largest, measure, to_text

__all__ = [
    "CHIPS",
    "Figures",
    "PreflightError",
    "Subject",
    "Topology",
    "find_largest",
    "measure",
    "parse_topology",
    "resolve",
    "to_text",
]
