"""The paper's figures: `python -m keras_mixer.analysis`, a command for each.

`architecture` draws a model (Fig. 1). `weights_figures` draws token-mixing
units and the stem (Fig. 5, 6) as `mosaic`s of the images and numbers of
`units`. `permutation` (Fig. 4) and `scale` train with the one trainer, through
`sweep`. `cost` counts (`flops`) and measures (`cost_process`) for `cost_figure`
(Fig. 2, 3). `compare` reads the `curves` of runs.
"""
