"""What is wrong with this machine, and the command that mends it.

`machine` reads what is installed without importing it. `plan` names the kind
of machine, the engine that works there and the command to type. `checks` judges
what is installed for that engine, and `packages` says what pip should install.
`probe` imports TensorFlow and `smoke` trains a step, each in a process of its
own, because the wrong libtpu aborts the process that imports TensorFlow.
`imported` judges their answers. The program is `python -m keras_mixer.doctor`.
"""
