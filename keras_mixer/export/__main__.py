"""python -m keras_mixer.export: see programs/export.py."""

from keras_mixer.programs.export import run

if __name__ == "__main__":
    run()
