"""Says before a TPU is rented whether a run fits it, and how fast it can be.

`lowering` traces the JAX engine's own step for the devices of a topology.
`compiler` gives it to the TPU compiler, which needs no TPU. `traffic` reads the
compiled program, `chips` knows the hardware, and `report` turns all of it into
figures and a table.
"""
