"""The programs: flags and wiring."""

import os

# Before TensorFlow is imported. Without a GPU its errors are about the GPU.
_quiet = "2" if os.path.exists("/dev/nvidiactl") else "3"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", _quiet)
