"""What the environment and /dev say about other hosts and TPUs.

Nothing here imports TensorFlow: `python -m keras_mixer.doctor` needs it where
TensorFlow cannot be imported.
"""

import contextlib
import json
import pathlib
from collections.abc import Mapping

_GOOGLE = "0x1ae0"  # as a vendor of PCI devices
# By these, machines say that they have a TPU of their own. Colab sets
# COLAB_TPU_1VM to 1 or to nothing; the Dockerfile of Kaggle's image for TPUs
# sets ISTPUVM.
OWN_TPU_VARIABLES = ("TPU_ACCELERATOR_TYPE", "COLAB_TPU_1VM", "ISTPUVM")
# Variables that a service sets in its images. Kaggle comes first, because its
# images are built from Colab's and may inherit variables
# (github.com/Kaggle/docker-python, pull request 1444).
_SERVICES = {
    "Kaggle": ("KAGGLE_KERNEL_RUN_TYPE", "KAGGLE_URL_BASE"),
    "Colab": ("COLAB_RELEASE_TAG", "COLAB_BACKEND_VERSION"),
}

_MOST_VIRTUAL = 1024  # devices that the CPU is split into
STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")


class EngineError(ValueError):
    """The machine or the batch does not fit the engine or its strategy."""


# EX_TEMPFAIL of sysexits.h: the same command may succeed later.
EXIT_CODE = 75


class WorkerLostError(RuntimeError):
    """Another worker died or is unreachable; start all workers again."""


def check_virtual_devices(count: int) -> None:
    """Raises EngineError unless the CPU can be split into so many devices."""
    if count < 1:
        raise EngineError(
            f"virtual_devices must be positive. Received: {count}"
        )
    if count > _MOST_VIRTUAL:
        raise EngineError(
            f"virtual_devices must be at most {_MOST_VIRTUAL}. Received: "
            f"{count}"
        )


def check_device_flags(
    strategy: str, tpu: str | None, virtual_devices: int | None
) -> None:
    """Raises EngineError for devices that the strategy would leave unused.

    The arguments are those of `make.make_engine`, of the TensorFlow engine.
    """
    if tpu is not None and strategy not in ("auto", "tpu"):
        raise EngineError(
            f"--tpu={tpu} goes with --strategy=tpu or auto. Received: "
            f"--strategy={strategy}"
        )
    if virtual_devices is None:
        return
    check_virtual_devices(virtual_devices)
    used_by = ["auto", "mirrored"]
    if virtual_devices == 1:
        used_by.append("one_device")
    if tpu is not None or strategy not in used_by:
        other = f"--strategy={strategy}" if tpu is None else f"--tpu={tpu}"
        raise EngineError(
            f"--virtual_devices={virtual_devices} rehearses several replicas "
            f"on the CPU, and {other} would not use them. Leave out one of "
            "the two flags."
        )


def lost_worker(lost: str, own: str) -> WorkerLostError:
    """Returns the error that names the lost worker and this one."""
    return WorkerLostError(
        f"{lost} died or cannot be reached, so {own} stops too. Its own output "
        "says why. Start all workers again with the same command: they go on "
        "from the newest checkpoint."
    )


TF_CONFIG_HELP = (
    'It should be {"cluster": {"worker": ["host:port", ...]}, "task": '
    '{"type": "worker", "index": 0}}, with an index of its own on each host.'
)


def cluster_of_tf_config(
    environment: Mapping[str, str],
) -> dict[str, list[str]]:
    """Returns the addresses that TF_CONFIG names, by kind of task.

    Raises:
      EngineError: TF_CONFIG cannot be read.
    """
    text = environment.get("TF_CONFIG", "")
    if not text:
        return {}
    try:
        cluster = json.loads(text).get("cluster", {})
        return {kind: list(tasks) for kind, tasks in cluster.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise EngineError(
            f"Cannot read the environment variable TF_CONFIG: {error}. "
            f"{TF_CONFIG_HELP} Received: {text[:200]}"
        ) from error


def tpu_of_environment(environment: Mapping[str, str]) -> str | None:
    """Returns the TPU of TPU_NAME, or the address that old Colabs give.

    "local" is this machine's own TPU; TensorFlow itself would look up a TPU of
    that name.
    """
    if name := environment.get("TPU_NAME"):
        return name
    address = environment.get("COLAB_TPU_ADDR")
    if not address:
        return None
    return address if "://" in address else f"grpc://{address}"


def tpu_files() -> tuple[str, ...]:
    """Returns the device files of a TPU's chips.

    These are /dev/accel0 ... or files of VFIO. Other devices that are passed
    through to a virtual machine have files of VFIO too, but another vendor.
    """
    found = list(pathlib.Path("/dev").glob("accel[0-9]*"))
    for file in pathlib.Path("/dev").glob("vfio/[0-9]*"):
        vendors = _vendors_of(file.name)
        if not vendors or _GOOGLE in vendors:
            found.append(file)
    return tuple(sorted(map(str, found)))


def announces_tpu(environment: Mapping[str, str]) -> bool:
    """Whether the environment says that this machine has a TPU of its own.

    Colab and Kaggle set such variables, also where no device file is visible.
    """
    return any(map(environment.get, OWN_TPU_VARIABLES))


def notebook_service(environment: Mapping[str, str]) -> str:
    """Returns "Kaggle" or "Colab" in a machine of theirs, else ""."""
    for name, variables in _SERVICES.items():
        if any(map(environment.get, variables)):
            return name
    return ""


def nvidia_files() -> tuple[str, ...]:
    """Returns the device files of NVIDIA GPUs."""
    return tuple(sorted(map(str, pathlib.Path("/dev").glob("nvidia[0-9]*"))))


def _vendors_of(group: str, root: str = "/sys/kernel/iommu_groups") -> set[str]:
    """Returns the PCI vendors of a VFIO group; none if Linux hides them."""
    files = pathlib.Path(root, group, "devices").glob("*/vendor")
    with contextlib.suppress(OSError):
        return {file.read_text().strip() for file in files}
    return set()


def hosts_of_slice(environment: Mapping[str, str]) -> int:
    """Returns the number of machines in this machine's TPU slice.

    Google's runtime names them on each machine; without it the number is 1.
    """
    names = environment.get("TPU_WORKER_HOSTNAMES", "")
    return max(1, len([name for name in names.split(",") if name.strip()]))
