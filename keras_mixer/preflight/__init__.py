"""Says before a TPU is rented whether a run fits it, and how fast it can be.

`lowering` makes a program of the trainer's own step. `compiler` gives it to
the TPU compiler, which needs no TPU. `traffic` reads the compiled program,
`chips` knows the hardware, and `report` turns all of it into figures and a
table.
"""
