"""A picture of a Mixer with the shapes of a variant (paper, Fig. 1).

Shapes and parameters are those of a model that is built, with one of its equal
blocks.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras

from keras_mixer import models
from keras_mixer.evaluation import pictures, report

_BLOCK = "MixerBlock_0"
_INNER = (  # its layers with parameters, in the order of equation 1
    *("LayerNorm_0", "token_mixing/Dense_0", "token_mixing/Dense_1"),
    *("LayerNorm_1", "channel_mixing/Dense_0", "channel_mixing/Dense_1"),
)
_PLAIN, _MIXER, _TOKEN, _CHANNEL = "#eeeeee", "#d9ead3", "#cfe2f3", "#fce5cd"
_WIDTH, _HEIGHT = 1.4, 0.9  # of a box
_STEP = 2.55  # from a box to the next one
_SKIP = 0.95  # height of a skip connection

# A box: its text and color. An arrow: the shape of what it carries.
_Boxes = Sequence[tuple[str, str]]


class Layer(NamedTuple):
    """A layer with parameters, or one that changes the shape."""

    name: str  # as in the released checkpoints
    times: int  # how often the model has it
    output: tuple[int, ...]  # its shape, without the batch
    parameters: int  # of one of them


def read_layers(name: str, image_size: int) -> list[Layer]:
    """Returns the layers of a variant, in their order.

    Raises:
      ValueError: The variant is unknown, or does not take the size.
    """
    variant = models.get_variant(name)
    model = models.Mixer(
        dataclasses.replace(variant, num_blocks=1),
        input_shape=(image_size, image_size, 3),
    )
    rows = []
    for layer in model.layers:
        shape = tuple(layer.output.shape[1:])
        if layer.name == _BLOCK:
            rows += _layers_of_block(layer, shape, variant.num_blocks)
        else:
            rows.append(Layer(layer.name, 1, shape, layer.count_params()))
    return rows


def _layers_of_block(
    block: keras.Layer, shape: tuple[int, ...], times: int
) -> list[Layer]:
    """Returns the layers of a Mixer layer that have parameters."""
    tokens, channels = shape
    found = []
    for name in _INNER:
        variables = [v for v in block.variables if f"/{name}/" in v.path]
        rows = channels if name.startswith("token_mixing") else tokens
        output = (rows, int(variables[0].shape[-1]))
        size = sum(math.prod(v.shape) for v in variables)
        found.append(Layer(f"MixerBlock/{name}", times, output, size))
    return found


def total(layers: Sequence[Layer]) -> int:
    """Returns the parameters of the whole model."""
    return sum(layer.times * layer.parameters for layer in layers)


def content(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """Returns the layers as rows of a file."""
    return [{**layer._asdict(), "output": _shape(layer)} for layer in layers]


def summary(layers: Sequence[Layer]) -> str:
    """Returns the layers as a table, and the sum of their parameters."""
    rows = [
        (
            row["name"],
            str(row["times"]),
            row["output"],
            f"{row['parameters']:,}",
        )
        for row in content(layers)
    ]
    header = ("layer", "times", "output", "parameters of one")
    return f"{report.table(header, rows)}\n{total(layers):,} parameters"


def draw(
    output: pathlib.Path, name: str, layers: Sequence[Layer]
) -> list[pathlib.Path]:
    """Draws the model, and below it the two halves of a Mixer layer."""
    found = {layer.name: layer for layer in layers}
    figure = pictures.new_figure(figsize=(12, 6.4))
    figure.suptitle(
        f"Mixer-{name} for images of {_shape(layers[0])}: "
        f"{total(layers):,} parameters"
    )
    rows = figure.subplots(3, 1, height_ratios=(1.3, 1.9, 1.9))
    _draw_model(rows[0], found)
    _draw_token_mixing(rows[1], found)
    _draw_channel_mixing(rows[2], found)
    for axes in rows:
        axes.set_axis_off()
        axes.set(xlim=(-2.1, 13.1), ylim=(-0.6, 1.3))
    rows[0].set(ylim=(-0.6, 0.7))
    figure.supxlabel(
        "In a box: parameters. Above an arrow: the shape of what it carries, "
        "for one image. Dashed: skip connections.",
        fontsize=8,
    )
    return pictures.save_all(figure, output)


def _draw_model(axes: Any, found: Mapping[str, Layer]) -> None:
    inner = [x for name, x in found.items() if name.startswith("MixerBlock/")]
    of_block = sum(layer.parameters for layer in inner)
    tokens = _shape(found["tokens"])
    _draw_chain(
        axes,
        "The model",
        [
            (_text("patches to\ntokens", found["stem"]), _PLAIN),
            (f"{inner[0].times} Mixer\nlayers\n{of_block:,} each", _MIXER),
            (_text("LayerNorm", found["pre_head_layer_norm"]), _PLAIN),
            ("mean over\nthe tokens", _PLAIN),
            (_text("Dense", found["head"]), _PLAIN),
        ],
        [
            _shape(next(iter(found.values()))),
            *(tokens, tokens, tokens),
            _shape(found["avg_pool"]),
            f"{_shape(found['head'])}\nclasses",
        ],
    )


def _draw_token_mixing(axes: Any, found: Mapping[str, Layer]) -> None:
    first = found["MixerBlock/token_mixing/Dense_0"]
    second = found["MixerBlock/token_mixing/Dense_1"]
    tokens, turned = _shape(found["tokens"]), _shape(second)
    _draw_chain(
        axes,
        "A Mixer layer, first half: mixes the tokens, alike in every channel",
        [
            (_text("LayerNorm", found["MixerBlock/LayerNorm_0"]), _PLAIN),
            ("transpose", _PLAIN),
            (_text("Dense, GELU", first), _TOKEN),
            (_text("Dense", second), _TOKEN),
            ("transpose", _PLAIN),
        ],
        [tokens, tokens, turned, _shape(first), turned, tokens],
        skip=True,
    )


def _draw_channel_mixing(axes: Any, found: Mapping[str, Layer]) -> None:
    first = found["MixerBlock/channel_mixing/Dense_0"]
    second = found["MixerBlock/channel_mixing/Dense_1"]
    tokens = _shape(second)
    _draw_chain(
        axes,
        "Second half: mixes the channels, alike in every token",
        [
            (_text("LayerNorm", found["MixerBlock/LayerNorm_1"]), _PLAIN),
            (_text("Dense, GELU", first), _CHANNEL),
            (_text("Dense", second), _CHANNEL),
        ],
        [tokens, tokens, _shape(first), tokens],
        skip=True,
    )


def _shape(layer: Layer) -> str:
    return " x ".join(map(str, layer.output))


def _text(what: str, layer: Layer) -> str:
    return f"{what}\n{layer.parameters:,}"


def _draw_chain(
    axes: Any,
    title: str,
    boxes: _Boxes,
    shapes: Sequence[str],
    *,
    skip: bool = False,
) -> None:
    """Draws boxes with arrows before, between and after them.

    With `skip`, the input is added to the output.
    """
    axes.set_title(title, loc="left", fontsize=10)
    places = [i * _STEP for i in range(len(boxes))]
    for x, (text, color) in zip(places, boxes, strict=True):
        axes.text(x, 0, text, ha="center", va="center", fontsize=9, zorder=3)
        corner = (x - _WIDTH / 2, -_HEIGHT / 2)
        axes.add_patch(_rectangle(corner, color))
    gap = _STEP - _WIDTH
    starts = [-_STEP + _WIDTH / 2, *(x + _WIDTH / 2 for x in places)]
    for x, shape in zip(starts, shapes, strict=True):
        _draw_arrow(axes, (x, 0), (x + gap, 0))
        axes.text(x + gap / 2 + 0.04, 0.08, shape, ha="center", fontsize=8)
    if skip:
        start, end = starts[0] + 0.1, starts[-1] + gap + 0.12
        style = {"color": "#666666", "linestyle": "--", "linewidth": 1}
        axes.plot((start, start, end), (0, _SKIP, _SKIP), **style)
        _draw_arrow(axes, (end, _SKIP), (end, 0.14), **style)
        axes.text(end, 0, "+", ha="center", va="center", fontsize=14)
        _draw_arrow(axes, (end + 0.12, 0), (end + 0.12 + gap / 2, 0))


def _rectangle(corner: tuple[float, float], color: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(
        corner, _WIDTH, _HEIGHT, facecolor=color, edgecolor="black", zorder=2
    )


def _draw_arrow(
    axes: Any,
    start: tuple[float, float],
    end: tuple[float, float],
    **style: Any,
) -> None:
    shape = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, **style}
    axes.annotate("", end, start, arrowprops={"color": "black", **shape})
