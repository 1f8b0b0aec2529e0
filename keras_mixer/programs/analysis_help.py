"""What `python -m keras_mixer.analysis COMMAND --help` prints."""

WEIGHTS = """Draws the weights of a Mixer (paper, Fig. 5 and 6).

  python -m keras_mixer.analysis weights --workdir=runs/cifar10_scratch \\
      --output=weights.png
  python -m keras_mixer.analysis weights --weights=imagenet21k --model=B/16 \\
      --layers=0,1,2 --output=weights.png
  python -m keras_mixer.analysis weights --weights=wide.npz --grid=7x14 \\
      --output=weights.svg

weights.png shows the hidden units of the token-mixing MLPs as images over the
patch grid: one weight for each patch. Units are paired by opposite phase
(greedily, the most negative correlation first), and the pairs are sorted by
frequency. weights_stem.png shows the stem's kernels as RGB tiles. Both are also
written as SVG. weights.json and weights.csv hold the numbers.

The frequency of a unit is the mean radial frequency of its power spectrum, in
cycles per patch. Its concentration is the largest share of the power at one
frequency. An untrained network has those of white noise. Smooth units are
opposite by chance more often than white noise is. Therefore the correlation in
a pair stands beside that of units with the same power spectra and random
phases: if it is well below, there are pairs; if it is close, there may be.
"""

PERMUTATION = """\
Trains a Mixer and a small ResNet on permuted images (paper, Fig. 4).

  python -m keras_mixer.analysis permutation --workdir=runs/permutation \\
      --output=permutation.png
  python -m keras_mixer.analysis permutation --workdir=runs/permutation \\
      --recipe=cifar10_scratch --seeds=0,1 --output=permutation.svg \\
      data.data_dir=~/tensorflow_datasets train.epochs=8

Three inputs. Each is a fixed transform after all augmentation, the same for
all images, in training and in evaluation:
  original   the recipe's images
  patches    patches change places, and so do the pixels inside each patch, in
             the same way in all patches: |shuffle_patches(patch, seed)
  pixels     all pixels change places: |shuffle_pixels(seed)
They are steps of a policy, which train.py takes as well. The permutation has
the seed of its run.

Every run has a workdir inside --workdir, and a log beside it. Repeat the
command after an interruption: it continues and reuses finished runs.
"""

ARCHITECTURE = """Draws a Mixer with its shapes and parameters (paper, Fig. 1).

  python -m keras_mixer.analysis architecture --output=architecture.png
  python -m keras_mixer.analysis architecture --model=L/32 \\
      --image_size=448 --output=architecture.svg

The picture shows the model and the two halves of a Mixer layer. Shapes and
parameters are those of the built model, for 1000 classes. architecture.csv has
a row for each layer.
"""

COST = """Reports what the variants cost, and draws accuracy against cost.

  python -m keras_mixer.analysis cost --output=cost.png
  python -m keras_mixer.analysis cost --variants=S/16,B/16,L/16 \\
      --image_sizes=224,448 --measure=none --output=cost.png
  python -m keras_mixer.analysis cost --variants=S/32,S/16 --batch=16 \\
      --seconds=20 --time_limit=300 --output=cost.png

For every variant and size, parameters and FLOPs of the forward pass are counted
in the traced graph and compared with the formula. Then the peak memory and the
images per second of inference and of training (one update with AdamW in
float32) are measured, each in a process of its own. The paper's images per
second and core-days (TPUv3) stand beside them. At K times 224 pixels the
token-mixing MLPs are K^2 times wider, as in fine-tuning (paper, App. C), unless
--noexpand.

The picture shows the paper's accuracies against core-days and FLOPs, and its
speeds. What was measured here is in a second row.

cost.csv and cost.json hold the numbers. The same command reuses what was
measured with the same settings on the same machine, with the same TensorFlow
and Keras; --fresh measures again (after a change of keras_mixer, say). A
measurement that takes longer than --time_limit is "not run". If the weights,
gradients and moments alone exceed the free memory, the model "does not fit".
"""

SCALE = """Trains models of several sizes on shares of the data.

  python -m keras_mixer.analysis scale --workdir=runs/scale --output=scale.png
  python -m keras_mixer.analysis scale --workdir=runs/scale_c10 \\
      --recipe=cifar10_scratch --widths=0.5,1,2 --fractions=0.1,0.3,1 \\
      --seeds=0,1 --output=scale.png data.data_dir=~/tensorflow_datasets

--widths multiply hidden_dim, tokens_mlp_dim and channels_mlp_dim of the
recipe's model. --fractions take the first examples of its training split. All
runs take the same number of updates: the recipe's number on all data.

Every run has a workdir inside --workdir, and a log beside it. Repeat the
command after an interruption: it continues and reuses finished runs. With more
widths, fractions or seeds it adds their runs. scale.csv and scale.json hold
the numbers.
"""

CURVES = """Draws the curves of a run.

  python -m keras_mixer.analysis curves --workdir=runs/digits
  python -m keras_mixer.analysis curves --workdir=runs/digits \\
      --output=pictures/digits.svg

Draws training loss and evaluation accuracy over the updates, and few-shot
accuracies where the run has any. The run may still be training. Without
--output the picture is curves.png in the workdir, with curves.svg and
curves.csv beside it. train.py draws it at the end of a run if matplotlib is
installed.
"""

COMPARE = """Draws the curves of two or more runs in one picture.

  python -m keras_mixer.analysis compare runs/a runs/b --output=compare.png
  python -m keras_mixer.analysis compare runs/*/ --names=one,two,three \\
      --output=compare.svg

Draws training loss and evaluation accuracy over the updates, and few-shot
accuracies where the runs have any, from their metrics.jsonl. A run may still
be training. --evaluations adds what eval.py measured of the runs:

  python eval.py --workdir=runs/a --task=fewshot --output=a.json \\
      fewshot.shots=1,5,10
  python eval.py --workdir=runs/b --task=fewshot --output=b.json \\
      fewshot.shots=1,5,10
  python -m keras_mixer.analysis compare runs/a runs/b \\
      --evaluations=a.json,b.json --output=compare.png

Runs on different data sets have a row each: their losses and accuracies do not
compare. A table lists the fields in which their configs differ. compare.csv
holds the curves, compare.json the differences and the last values.
"""
