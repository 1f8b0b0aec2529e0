"""python eval.py --help: the program itself is keras_mixer/eval.py."""

import os

# Before TensorFlow is imported. Without a GPU its errors are about the GPU.
quiet = "2" if os.path.exists("/dev/nvidiactl") else "3"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", quiet)

from keras_mixer.eval import run

if __name__ == "__main__":
    run()
