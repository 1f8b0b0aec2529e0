"""python -m keras_mixer.data: see programs/data.py."""

from keras_mixer.programs.data import run

if __name__ == "__main__":
    run()
