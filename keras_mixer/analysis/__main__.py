"""python -m keras_mixer.analysis: see programs/analysis.py."""

from keras_mixer.programs.analysis import run

if __name__ == "__main__":
    run()
