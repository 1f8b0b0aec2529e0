"""Small runs, and what two of them must have in common."""

import json

import numpy as np
import pytest

from keras_mixer.run import config as config_lib, recipes
from keras_mixer.training import assembly

SMALL = (
    "data.train_split=train[:200]",
    "data.eval_split=test[:70]",
    "model.num_blocks=2",
    "model.hidden_dim=16",
    "model.tokens_mlp_dim=8",
    "model.channels_mlp_dim=16",
    "model.stoch_depth=0",
    "train.label_smoothing=0",
    "train.batch_size=24",
    "train.steps=12",
    "train.steps_per_call=3",
    "train.log_every=4",
    "train.eval_every=6",
    "train.checkpoint_every=4",
    "train.xla=false",
    "optim.warmup_steps=2",
)


# All that is drawn: order, crops and flips, mixup, stochastic depth, dropout.
RANDOM = (
    "augment.policy=pad_crop(1)|flip",
    "mixup.p=0.5",
    "model.stoch_depth=0.3",
    "model.dropout=0.1",
)


NOT_RANDOM = ("augment.policy=resize",)
# Its true gradient is zero: it adds the same number to all channels of a token,
# and every later LayerNorm takes that out. Adam makes a random walk of the
# rounding noise. Losses and logits show that it does nothing.
FREE = "token_mixing/Dense_1/bias"


def small(*overrides):
    names = {o.split("=")[0] for o in overrides}
    kept = [o for o in SMALL if o.split("=")[0] not in names]
    return config_lib.override(recipes.digits(), [*kept, *overrides])


def weights_of(workdir):
    model = assembly.load_trained(workdir).model
    return {w.path: np.asarray(w) for w in model.weights}


def lines_of(workdir, *, without=("images_per_second", "time")):
    lines = []
    for text in (workdir / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        lines.append({k: v for k, v in line.items() if k not in without})
    return lines


def assert_same_lines(ours, theirs, rel):
    """Equal texts and steps, numbers to a relative tolerance."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            if isinstance(a[key], float):
                assert a[key] == pytest.approx(b[key], rel=rel), key
            else:
                assert a[key] == b[key], key


def assert_same_weights(a, b, *, rtol, atol=0.0):
    """Tolerances of 0 ask for equal bits, also of what does nothing."""
    ours, theirs = weights_of(a), weights_of(b)
    assert ours.keys() == theirs.keys()
    for name, ours_of_it in ours.items():
        if FREE not in name or rtol == atol == 0:
            np.testing.assert_allclose(
                ours_of_it, theirs[name], rtol, atol, err_msg=name
            )
