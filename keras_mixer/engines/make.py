"""Makes the engine that was chosen."""

from typing import TYPE_CHECKING

from keras_mixer.engines import hosts

if TYPE_CHECKING:  # it imports Keras, whose backend may not be chosen yet
    from keras_mixer.engines.engine import Engine


def make_engine(
    name: str,
    *,
    one_device: bool = False,
    virtual_devices: int | None = None,
    strategy: str = "auto",
    tpu: str | None = None,
    coordinator: str | None = None,
    num_hosts: int | None = None,
    host: int | None = None,
) -> "Engine":
    """Returns the engine of this name, after `use_engine`.

    Args:
      name: "tensorflow" or "jax".
      one_device: Takes the first device alone.
      virtual_devices: Splits the CPU into so many devices.
      strategy: Of TensorFlow, see `distribute.make_strategy`, like `tpu`.
      coordinator: Of JAX, see `jax_machine.make_jax_engine`, like `num_hosts`
        and `host`.

    Raises:
      EngineError: What is asked for is not there.
    """
    if name == "jax":
        from keras_mixer.engines import jax_machine

        return jax_machine.make_jax_engine(
            one_device=one_device,
            virtual_devices=virtual_devices,
            coordinator=coordinator,
            num_hosts=num_hosts,
            host=host,
        )
    hosts.check_device_flags(strategy, tpu, virtual_devices)
    from keras_mixer.engines import distribute, tensorflow

    if virtual_devices is not None:
        distribute.split_cpu(virtual_devices)
    strategy = "one_device" if one_device else strategy
    return tensorflow.TensorFlowEngine(
        distribute.make_strategy(
            strategy, cpu=virtual_devices is not None, tpu=tpu
        )
    )
