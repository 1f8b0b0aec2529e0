"""What is wrong with this machine, and what mends it.

`machine` reads what is installed without importing it, `checks` judges it,
`probe` imports TensorFlow and `smoke` trains a step, both in processes of
their own: the wrong libtpu aborts the process that imports TensorFlow. The
program is `python -m keras_mixer.doctor`.
"""
