"""Random numbers of Keras' and keras-cv's layers, as functions of a key.

A layer gets `Seeds` in place of its generators, and is traced. All that it
draws is then a stateless op of the key, which the traced function takes.

The layers of Keras draw through a SeedGenerator. Those of keras-cv 0.9 draw
from a tf.random.Generator, and their samplers of factors and mixing layers
call tf.random without a seed. Hence `in_place_of_tf_random`.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

_LOCK = threading.RLock()
_fold_in = tf.random.experimental.stateless_fold_in


class Seeds(keras.random.SeedGenerator):
    """The seeds of what is being traced: the n-th is the key with n folded in.

    The body of a loop is traced once; there, the number of the round is folded
    in as well. keras-cv calls the methods that tf.random.Generator and
    tf.random have, too.
    """

    def __init__(self) -> None:  # without the variable of its base
        self._key: Any = None
        self._count = 0

    def start(self, key: tf.Tensor) -> None:
        """Begins a trace. `key` is int64 `[2]`, a tensor of its graph."""
        self._key, self._count = key, 0

    @property
    def are_used(self) -> bool:
        """Whether anything was drawn since the trace began."""
        return self._count > 0

    def next(self, ordered: bool = True) -> tf.Tensor:
        """Returns the next seed, int64 `[2]`."""
        seed = _fold_in(self._key, self._count)
        self._count += 1
        graph = tf.compat.v1.get_default_graph()
        while graph is not self._key.graph:
            if type(graph).__name__ == "WhileBodyFuncGraph":
                # The first input of a body is the number of the round.
                seed = _fold_in(seed, graph.get_operations()[0].outputs[0])
            graph = graph.outer_graph
        return seed

    def uniform(
        self, shape: Any, *rest: Any, seed: None = None, **named: Any
    ) -> tf.Tensor:
        return tf.random.stateless_uniform(shape, self.next(), *rest, **named)

    def normal(
        self, shape: Any, *rest: Any, seed: None = None, **named: Any
    ) -> tf.Tensor:
        return tf.random.stateless_normal(shape, self.next(), *rest, **named)

    random_normal = normal  # GridMask calls it by this name

    def gamma(self, shape: Any, alpha: Any, seed: None = None) -> tf.Tensor:
        alpha = tf.convert_to_tensor(alpha, tf.float32)
        shape = tf.concat([tf.cast(shape, tf.int32), tf.shape(alpha)], 0)
        return tf.random.stateless_gamma(shape, self.next(), alpha)

    def shuffle(self, value: tf.Tensor, seed: None = None) -> tf.Tensor:
        return tf.random.experimental.stateless_shuffle(value, self.next())


def give(seeds: Seeds, layer: Any) -> None:
    """Makes a layer, and the layers it consists of, draw from `seeds`."""
    for part in layer._flatten_layers():
        if hasattr(part, "generator"):  # Keras
            part.generator = seeds
            part._backend_generators = {"tensorflow": seeds}
        if hasattr(part, "_random_generator"):  # keras-cv
            part._random_generator = seeds
        if hasattr(part, "backend"):  # Keras with any backend, in tf.data
            part.backend.set_backend("tensorflow")


@contextlib.contextmanager
def in_place_of_tf_random(seeds: Seeds) -> Iterator[None]:
    """Makes tf.random draw from `seeds`, in this thread alone."""
    thread = threading.get_ident()

    def only_here(new: Callable, old: Callable) -> Callable:
        def draw(*arguments: Any, **named: Any) -> Any:
            here = threading.get_ident() == thread
            return (new if here else old)(*arguments, **named)

        return draw

    with _LOCK, contextlib.ExitStack() as stack:
        for name in ("uniform", "normal", "gamma", "shuffle"):
            old = getattr(tf.random, name)
            stack.callback(setattr, tf.random, name, old)
            setattr(tf.random, name, only_here(getattr(seeds, name), old))
        yield


class AugMix(keras.layers.AugMix):
    """Keras' AugMix with operations that are drawn for every image.

    Keras draws them with Python's `random`: a trace would fix them.
    """

    def get_random_transformation(
        self, data: Any, training: bool = True, seed: Any = None
    ) -> None:
        """Draws nothing: `transform_images` draws what it applies."""

    def transform_images(
        self, images: Any, transformation: None, training: bool = True
    ) -> Any:
        """Augments floats `[batch, height, width, channels]`."""
        seed, random = self.generator, self.backend.random
        layers = [getattr(self, name) for name in self._augment_layers]

        def augment(image: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
            def apply(layer: Any) -> tf.Tensor:
                drawn = layer.get_random_transformation(image, seed=seed)
                out = layer.transform_images(image, drawn)
                return tf.ensure_shape(out, images.shape)

            branches = [functools.partial(apply, layer) for layer in layers]
            branches.append(functools.partial(tf.identity, image))
            index = random.randint((), 0, len(branches), seed=seed)
            return tf.switch_case(index, branches)

        def chain(weight: tf.Tensor) -> tf.Tensor:
            depth = tf.range(self.chain_depth)
            return weight * tf.foldl(augment, depth, images)

        weights = self._sample_from_dirichlet(
            [self.num_chains], self.alpha, seed
        )
        share = random.beta((), self.alpha, self.alpha, seed=seed)
        mixed = tf.reduce_sum(tf.map_fn(chain, weights), 0)
        return tf.clip_by_value(
            share * images + (1 - share) * mixed, *self.value_range
        )
