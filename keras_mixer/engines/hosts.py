"""What the environment says of other hosts and of TPUs.

Read without TensorFlow, so that `python -m keras_mixer.doctor` can say it
where TensorFlow cannot be imported.
"""

import contextlib
import json
import pathlib
from collections.abc import Mapping

_GOOGLE = "0x1ae0"  # of PCI devices

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")


class DistributeError(ValueError):
    """The machine or the batch does not fit the strategy that was asked for."""


TF_CONFIG_HELP = (
    'It should be {"cluster": {"worker": ["host:port", ...]}, "task": '
    '{"type": "worker", "index": 0}}, with an index of its own on each host.'
)


def cluster_of_tf_config(
    environment: Mapping[str, str],
) -> dict[str, list[str]]:
    """Returns the workers and chief that TF_CONFIG names, by kind of task.

    Raises:
      DistributeError: TF_CONFIG cannot be read.
    """
    text = environment.get("TF_CONFIG", "")
    if not text:
        return {}
    try:
        cluster = json.loads(text).get("cluster", {})
        return {kind: list(tasks) for kind, tasks in cluster.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise DistributeError(
            f"Cannot read the environment variable TF_CONFIG: {error}. "
            f"{TF_CONFIG_HELP} Received: {text[:200]}"
        ) from error


def tpu_of_environment(environment: Mapping[str, str]) -> str | None:
    """Returns the TPU that TPU_NAME names, or the address of an old Colab's.

    "local" is this machine's own. TensorFlow would look up a TPU of that name
    if the variable were left to it.
    """
    if name := environment.get("TPU_NAME"):
        return name
    address = environment.get("COLAB_TPU_ADDR")
    if not address:
        return None
    return address if "://" in address else f"grpc://{address}"


def tpu_files() -> tuple[str, ...]:
    """Returns the files by which Linux offers the chips of a TPU.

    /dev/accel0 ..., or VFIO's, which other devices that are handed to a
    program or a virtual machine have as well: theirs have another vendor.
    """
    found = list(pathlib.Path("/dev").glob("accel[0-9]*"))
    for file in pathlib.Path("/dev").glob("vfio/[0-9]*"):
        vendors = _vendors_of(file.name)
        if not vendors or _GOOGLE in vendors:
            found.append(file)
    return tuple(sorted(map(str, found)))


def _vendors_of(group: str, root: str = "/sys/kernel/iommu_groups") -> set[str]:
    """Returns the PCI vendors of a VFIO group; empty if Linux hides them."""
    files = pathlib.Path(root, group, "devices").glob("*/vendor")
    with contextlib.suppress(OSError):
        return {file.read_text().strip() for file in files}
    return set()


def hosts_of_slice(environment: Mapping[str, str]) -> int:
    """Returns how many machines share the TPU slice that this one is part of.

    Google's runtime names them on each machine; 1 where it does not.
    """
    names = environment.get("TPU_WORKER_HOSTNAMES", "")
    return max(1, len([name for name in names.split(",") if name.strip()]))
