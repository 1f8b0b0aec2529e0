"""The paper's pictures: `python -m keras_mixer.analysis`, a command for each.

`weights_figures` draws token-mixing units and the stem (Fig. 5, 6) from the
images and numbers of `units`; `permutation` (Fig. 4) and `scale` train with
the one trainer, by way of `sweep`; `cost` (Fig. 2, 3) counts (`flops`) and
measures (`cost_process`); `compare` reads the `curves` of runs.
"""
