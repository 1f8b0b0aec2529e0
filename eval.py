"""python eval.py --help: the program is keras_mixer/programs/eval.py."""

from keras_mixer.programs.eval import run

if __name__ == "__main__":
    run()
