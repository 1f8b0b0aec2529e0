"""python train.py --help: the program is keras_mixer/programs/train.py."""

from keras_mixer.programs.train import run

if __name__ == "__main__":
    run()
