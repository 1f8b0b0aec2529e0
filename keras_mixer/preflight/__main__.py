"""python -m keras_mixer.preflight: see programs/preflight.py."""

from keras_mixer.programs.preflight import run

if __name__ == "__main__":
    run()
