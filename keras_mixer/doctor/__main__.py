"""python -m keras_mixer.doctor: see programs/doctor.py."""

from keras_mixer.programs.doctor import run

if __name__ == "__main__":
    run()
