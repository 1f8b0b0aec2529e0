"""Learning-rate schedules and optimizers."""

import dataclasses
import math
from typing import Any

import keras
from keras import ops

from keras_mixer.run import suggest
from keras_mixer.run.fields import OptimConfig


@keras.saving.register_keras_serializable(package="keras_mixer")
@dataclasses.dataclass
class WarmupDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0, then linear, cosine or no decay.

    The factors of warm-up and decay are multiplied, as in big_vision's
    utils.py: at step s of T with warm-up W, the rate is
    `lr * min(1, s / W) * decay((s - W) / (T - W))`.

    Raises:
      ValueError: `decay` is unknown or the warm-up as long as the run.
    """

    lr: float  # the peak
    _: dataclasses.KW_ONLY
    total_steps: int  # updates of the whole run (T)
    warmup_steps: int = 0  # W
    decay: str = "linear"  # or "cosine" (to 0) or "constant"
    end_factor: float = 1e-5  # share of `lr` that the linear decay ends at

    def __post_init__(self) -> None:
        suggest.check_choice(
            "decay", self.decay, ("linear", "cosine", "constant")
        )
        if not 0 <= self.warmup_steps < self.total_steps:
            raise ValueError(
                "warmup_steps must be at least 0 and below total_steps="
                f"{self.total_steps}. Received: {self.warmup_steps}"
            )

    def __call__(self, step: Any) -> Any:
        step = ops.cast(step, "float32")
        length = self.total_steps - self.warmup_steps
        progress = ops.clip((step - self.warmup_steps) / length, 0.0, 1.0)
        lr = ops.convert_to_tensor(self.lr, "float32")
        if self.decay == "linear":
            lr *= 1.0 - (1.0 - self.end_factor) * progress
        elif self.decay == "cosine":
            lr *= 0.5 * (1.0 + ops.cos(math.pi * progress))
        if self.warmup_steps:
            lr *= ops.minimum(step / self.warmup_steps, 1.0)
        return lr

    def get_config(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class _TakesSums:
    """Mixed into a Keras optimizer: its gradients are summed over replicas.

    The engine sums them and clips the sum. Keras on TensorFlow would sum them
    once more. `_all_reduce_sum_gradients` is private to Keras; `make_optimizer`
    fails loudly where it is missing. Keras on JAX sums nothing.
    """

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        return grads_and_vars


class _StoresMean:
    """Mixed into a Keras optimizer: its running mean may be in bfloat16.

    The running mean is Adam's mean of the gradients or SGD's momentum; optax
    calls it mu. Adam's mean of the squares stays float32: it changes by a
    thousandth of itself in a step, which bfloat16 would round to nothing.
    """

    mu_dtype = "float32"

    def add_variable(
        self, *args: Any, dtype: Any = None, name: Any = None, **kwargs: Any
    ) -> Any:
        if name is not None and name.endswith("_momentum"):
            dtype = self.mu_dtype
        return super().add_variable(  # type: ignore[misc]
            *args, dtype=dtype, name=name, **kwargs
        )

    def assign_add(self, variable: Any, value: Any) -> None:
        if keras.backend.standardize_dtype(variable.dtype) == "bfloat16":
            # Rounds the float32 sum once, and not what is added as well.
            value = ops.cast(variable, "float32") + ops.cast(value, "float32")
            self.assign(variable, value)  # type: ignore[attr-defined]
        else:
            super().assign_add(variable, value)  # type: ignore[misc]


class _HasKernel:
    """Mixed into a Keras optimizer: TensorFlow's kernel makes its updates.

    It takes float32 alone, and only TensorFlow has it; XLA does as much on JAX.
    """

    def update_step(self, gradient: Any, variable: Any, lr: Any) -> None:
        dtypes = variable.dtype, gradient.dtype, self.mu_dtype  # type: ignore[attr-defined]
        names = {keras.backend.standardize_dtype(x) for x in dtypes}
        if keras.backend.backend() == "tensorflow" and names == {"float32"}:
            index = self._get_variable_index(variable)  # type: ignore[attr-defined]
            self.update_by_kernel(index, variable, gradient, lr)  # type: ignore[attr-defined]
        else:
            super().update_step(gradient, variable, lr)  # type: ignore[misc]


class _AdamW(_HasKernel, _TakesSums, _StoresMean, keras.optimizers.Adam):
    def update_by_kernel(self, *arguments: Any) -> None:
        from keras_mixer.engines import updates

        updates.update_by_adam(self, *arguments)


class _SGD(_HasKernel, _TakesSums, _StoresMean, keras.optimizers.SGD):
    def update_by_kernel(self, *arguments: Any) -> None:
        from keras_mixer.engines import updates

        updates.update_by_momentum(self, *arguments)


def make_schedule(config: OptimConfig, *, total_steps: int) -> WarmupDecay:
    """Returns the learning rate of a run of `total_steps` updates."""
    return WarmupDecay(
        config.lr,
        total_steps=total_steps,
        warmup_steps=config.warmup_steps or 0,
        decay=config.schedule,
        end_factor=config.end_lr_factor,
    )


def make_optimizer(
    config: OptimConfig, *, schedule: WarmupDecay, variables: list[Any]
) -> Any:
    """Builds the optimizer of a run for `variables`, the trainable ones.

    Weight decay is decoupled, multiplied by the scheduled learning rate and
    applied to kernels alone (big_vision, configs/mlp_mixer_i1k.py).

    Deviates from optax, which the authors used, as Keras does: Adam's epsilon
    is added before the bias correction of the second moment, and SGD's velocity
    contains the learning rate of the step that a gradient came from.

    Returns:
      A Keras optimizer, built, whose `apply` takes gradients that are summed
      over the replicas.

    Raises:
      RuntimeError: This Keras does not reduce gradients where expected.
    """
    backend = keras.backend.backend()
    sums_itself = hasattr(
        keras.optimizers.Optimizer, "_all_reduce_sum_gradients"
    )
    if sums_itself != (backend == "tensorflow"):
        raise RuntimeError(
            f"Keras {keras.__version__} with the backend {backend!r} does not "
            "reduce gradients where keras_mixer expects it "
            "(Optimizer._all_reduce_sum_gradients). Take a Keras version that "
            "setup.cfg allows."
        )
    decay = config.weight_decay or None
    optimizer: Any
    if config.name == "adamw":
        optimizer = _AdamW(
            schedule,
            weight_decay=decay,
            beta_1=config.b1,
            beta_2=config.b2,
            epsilon=config.eps,
            name="adamw",
        )
    else:
        optimizer = _SGD(
            schedule, momentum=config.momentum, weight_decay=decay, name="sgd"
        )
    optimizer.mu_dtype = config.mu_dtype
    if decay:
        optimizer.exclude_from_weight_decay(
            var_list=[v for v in variables if not v.path.endswith("/kernel")]
        )
    optimizer.build(variables)
    return optimizer
