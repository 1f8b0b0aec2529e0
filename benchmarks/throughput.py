"""Speed of training and inference beside other projects, in turns.

One batch of random images again and again, in float32. Training is an update
with AdamW and clipping, which is what train.py does between two log lines, here
without stochastic depth and mixup, which the others do not have. Inference is
the forward pass with which eval.py counts. Each program is a process of its
own. All of them stay, and take turns of some seconds each, because the speed of
a machine changes from minute to minute.

    pip install -e '.[jax]' flax optax
    pip install torch --index-url https://download.pytorch.org/whl/cpu
    pip install timm==1.0.31
    python benchmarks/throughput.py                      S/32, training
    python benchmarks/throughput.py --case=b16 --mode=infer
    python benchmarks/throughput.py --programs=tensorflow,tensorflow_bfloat16
    python benchmarks/throughput.py --case=digits_run    the recipe as a whole

The table has a line for each program, of medians over the turns: images per
second; the ratio to the first program within a round, with the two quartiles;
the share of the peak, which is the fastest of three products of two float32
matrices of 2048 x 2048 in the same process and turn; CPU seconds per 1000
images; seconds up to the end of the first call; and the peak memory.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import peers

ROOT = pathlib.Path(__file__).resolve().parent.parent
LR, WEIGHT_DECAY, CLIP = 1e-3, 0.1, 1.0
SIDE = 2048  # of the matrices whose product is the peak

Call = Callable[[int], Any]  # makes some updates, or passes


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and its batch."""

    side: int  # of the images, in pixels
    classes: int
    batch: int
    dims: Any  # the dimensions of a `Variant`
    flops: float  # of an image's forward pass

    def make_batch(self) -> dict[str, np.ndarray]:
        """Returns random images, uint8 [batch, side, side, 3], and labels."""
        rng = np.random.default_rng(0)
        shape = (self.batch, self.side, self.side, 3)
        return {
            "image": rng.integers(0, 256, shape, np.uint8),
            "label": rng.integers(0, self.classes, self.batch),
            "index": np.arange(self.batch),
        }


# Variant or recipe; side, classes, batch.
CASES = {
    "s32": ("S/32", 224, 1000, 32),
    "s16": ("S/16", 224, 1000, 16),
    "b16": ("B/16", 224, 1000, 8),
    "cifar10": ("cifar10_scratch", 32, 10, 64),
    "digits": ("digits", 8, 10, 64),
}


def describe(case: str) -> str:
    """Returns a `Case` as JSON, for processes that do not import TensorFlow."""
    from keras_mixer import models
    from keras_mixer.analysis import flops
    from keras_mixer.run import recipes
    from keras_mixer.training import assembly

    name, side, classes, batch = CASES[case]
    if "/" in name:
        dims = models.get_variant(name)
    else:
        dims = assembly.dimensions(recipes.get_recipe(name).model)
    return json.dumps(
        {
            "side": side,
            "classes": classes,
            "batch": batch,
            "dims": dataclasses.asdict(dims),
            "flops": flops.by_formula(dims, side, classes).flops,
        }
    )


def read_case(text: str) -> Case:
    """Reads what `describe` returns."""
    found = json.loads(text)
    return Case(**found | {"dims": types.SimpleNamespace(**found["dims"])})


def make_engine(name: str, **flags: Any) -> Any:
    """Returns an engine, on one device unless flags of `make` are given."""
    from keras_mixer.engines import choice, make, memory

    memory.keep_freed_memory()
    choice.use_engine(choice.Choice(name, "the benchmark says so"))
    return make.make_engine(name, **(flags or {"one_device": True}))


def ours(case: Case, trains: bool, engine: str, **options: Any) -> Call:
    return call_on(make_engine(engine), case, trains, **options)


def call_on(made: Any, case: Case, trains: bool, **options: Any) -> Call:
    """Returns a call of the trainer's step, or of a forward pass."""
    import tensorflow as tf
    from keras import ops

    from keras_mixer.models import preprocessing
    from keras_mixer.run import config as config_lib
    from keras_mixer.training import assembly

    config = config_lib.override(
        config_lib.Config(),
        [
            "model.variant=custom",
            *(
                f"model.{name}={value}"
                for name, value in vars(case.dims).items()
            ),
            f"model.image_size={case.side}",
            f"model.precision={options.get('precision', 'float32')}",
            f"train.xla={options.get('xla', True)}",
            f"train.batch_size={case.batch}",
            "train.steps=100000",
            f"optim.lr={LR}",
            f"optim.weight_decay={WEIGHT_DECAY}",
            f"optim.clip_norm={CLIP}",
        ],
    )
    batch = case.make_batch()
    share = {key: x[: case.batch // made.replicas] for key, x in batch.items()}
    with made.scope():
        model, optimizer, _ = assembly.build_training(config, case.classes)
    batches = made.batches(
        lambda *_: tf.data.Dataset.from_tensors(share).repeat()
    )
    if trains:
        steps = made.make_train_steps(model, optimizer, config)
        return lambda count: steps(batches, count, False)

    def sum_logits(batch: Any) -> Any:
        images = preprocessing.to_value_range(batch["image"])
        return ops.sum(model(images, training=False), axis=0)

    sums = made.make_sums(
        model, sum_logits, size=case.classes, xla=config.train.xla
    )
    return lambda count: sums(batches, count)


def _plain_keras(case: Case, trains: bool) -> Call:
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import tensorflow as tf

    batch = case.make_batch()
    model = keras.Sequential(
        [
            keras.layers.Rescaling(1 / 127.5, -1),
            peers.plain_keras(case.dims, case.side, case.classes),
        ]
    )
    data = tf.data.Dataset.from_tensors((batch["image"], batch["label"]))
    data = data.repeat()
    model.compile(
        keras.optimizers.AdamW(LR, WEIGHT_DECAY, global_clipnorm=CLIP),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
    )
    if trains:
        return lambda count: model.fit(data, steps_per_epoch=count, verbose=0)
    return lambda count: model.predict(data, steps=count, verbose=0)


def _flax(case: Case, trains: bool) -> Call:
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from keras_mixer.engines import memory

    memory.keep_freed_memory()
    import jax
    import jax.numpy as jnp
    import optax

    net = peers.flax_mixer(case.dims, case.classes)
    batch = case.make_batch()
    params = net.init(
        jax.random.key(0), jnp.zeros(batch["image"].shape, jnp.float32)
    )

    def logits_of(params, images):
        return net.apply(params, images.astype(jnp.float32) / 127.5 - 1)

    if not trains:
        forward = jax.jit(lambda p, x: logits_of(p, x).sum(0))

        def infer(count: int) -> None:
            found = [forward(params, batch["image"]) for _ in range(count)]
            jax.block_until_ready(found)

        return infer
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP),
        optax.adamw(LR, weight_decay=WEIGHT_DECAY),
    )

    def step(params, state, images, labels):
        def loss_of(params):
            one_hot = jax.nn.one_hot(labels, case.classes)
            logits = logits_of(params, images)
            return optax.softmax_cross_entropy(logits, one_hot).mean()

        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    jitted = jax.jit(step, donate_argnums=(0, 1))
    held = [params, optimizer.init(params)]

    def train(count: int) -> None:
        losses = []
        for _ in range(count):
            held[0], held[1], loss = jitted(
                *held, batch["image"], batch["label"]
            )
            losses.append(loss)
        jax.block_until_ready(losses)

    return train


def _timm(case: Case, trains: bool, *, compiled: bool) -> Call:
    import torch

    batch = case.make_batch()
    images = torch.from_numpy(batch["image"])
    labels = torch.from_numpy(batch["label"])
    model = peers.timm_mixer(case.dims, case.side, case.classes).train(trains)
    parameters = list(model.parameters())
    forward = torch.compile(model) if compiled else model

    def logits() -> Any:
        pixels = images.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1
        return forward(pixels)

    def infer(count: int) -> None:
        with torch.inference_mode():
            for _ in range(count):
                logits()

    optimizer = torch.optim.AdamW(
        parameters, LR, weight_decay=WEIGHT_DECAY, fused=True
    )

    def train(count: int) -> None:
        for _ in range(count):
            loss = torch.nn.functional.cross_entropy(logits(), labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()

    return train if trains else infer


# What makes each program, and the framework that multiplies there.
PROGRAMS: dict[str, tuple[Callable[..., Call], dict[str, Any], str]] = {
    "tensorflow": (ours, {"engine": "tensorflow"}, "tensorflow"),
    "jax": (ours, {"engine": "jax"}, "jax"),
    "tensorflow_no_xla": (
        ours,
        {"engine": "tensorflow", "xla": False},
        "tensorflow",
    ),
    "tensorflow_bfloat16": (
        ours,
        {"engine": "tensorflow", "precision": "bfloat16"},
        "tensorflow",
    ),
    "jax_bfloat16": (
        ours,
        {"engine": "jax", "precision": "bfloat16"},
        "jax",
    ),
    "keras_fit": (_plain_keras, {}, "tensorflow"),
    "flax": (_flax, {}, "jax"),
    "timm": (_timm, {"compiled": False}, "torch"),
    "timm_compiled": (_timm, {"compiled": True}, "torch"),
}
DEFAULT = "tensorflow,jax,keras_fit,flax,timm,timm_compiled"


def _multiply(framework: str, values: np.ndarray) -> Callable[[], Any]:
    """Returns what multiplies a matrix by itself."""
    if framework == "torch":
        import torch

        matrix = torch.from_numpy(values)
        return lambda: matrix @ matrix
    if framework == "jax":
        import jax

        array = jax.numpy.asarray(values)
        product = jax.jit(lambda x: x @ x)
        return lambda: product(array).block_until_ready()
    import tensorflow as tf

    tensor = tf.constant(values)
    return lambda: (tensor @ tensor).numpy()


def time_product(multiply: Callable[[], Any]) -> float:
    """Returns FLOP/s of the fastest of three products by `_multiply`."""
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - begun)
    return 2 * SIDE**3 / min(seconds)


def peak_memory() -> float:
    """Returns MiB of this process; getrusage would count its parent's."""
    text = pathlib.Path("/proc/self/status").read_text()
    [line] = [x for x in text.splitlines() if x.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def serve(program: str, case: Case, trains: bool) -> None:
    """Takes turns in this process: one for each line, which gives its seconds.

    Prints a line of JSON when it is ready, and one for each turn.
    """
    make, options, framework = PROGRAMS[program]
    begun = time.perf_counter()
    call = make(case, trains, **options)
    call(1)
    first = time.perf_counter() - begun
    call(2)
    memory = peak_memory()
    values = np.random.default_rng(0).normal(size=(SIDE, SIDE))
    multiply = _multiply(framework, values.astype(np.float32))
    multiply()
    # The backward pass has two products for each one of the forward pass.
    flops = case.flops * (3 if trains else 1)
    few = 50 if case.side < 100 else 2  # batches between looks at the clock
    print(json.dumps({"ready": program}), flush=True)
    for line in sys.stdin:
        call(1)  # its memory is in the caches again
        cpu, begun, batches = time.process_time(), time.perf_counter(), 0
        while time.perf_counter() - begun < float(line):
            call(few)
            batches += few
        spent = time.perf_counter() - begun
        cpu = time.process_time() - cpu
        images = batches * case.batch
        turn = {
            "images/s": images / spent,
            "share of peak": flops * images / spent / time_product(multiply),
            "CPU s per 1000": cpu / images * 1000,
            "first call, s": first,
            "peak MiB": memory,
        }
        print(json.dumps(turn), flush=True)


class Worker:
    """A process in which a program takes turns; see `serve`.

    `missing` is the error if it cannot start, as without a package.
    """

    def __init__(self, program: str, errors: pathlib.Path, *flags: str):
        self.errors = errors
        with errors.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, __file__, f"--worker={program}", *flags],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        self.missing = ""
        if not self._read():
            last = errors.read_text().strip().rpartition("\n")[2]
            self.missing = last or f"exit code {self.process.wait()}"

    def _read(self) -> dict[str, float]:
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        return {}

    def turn(self, seconds: float) -> dict[str, float]:
        print(seconds, file=self.process.stdin, flush=True)
        return self._read() or sys.exit(self.errors.read_text())


def take_turns(
    programs: Sequence[str],
    rounds: int,
    seconds: float,
    errors: pathlib.Path,
    *flags: str,
) -> list[dict[str, dict[str, float]]]:
    """Returns each round's turns by program; {} where one cannot start."""
    workers = {}
    for program in programs:
        workers[program] = Worker(program, errors / program, *flags)
        if missing := workers[program].missing:
            print(f"{program}: not run, {missing}", file=sys.stderr, flush=True)
            if program == programs[0]:  # the others are compared with it
                sys.exit(workers[program].errors.read_text())
    found = []
    for number in range(rounds):
        found.append(
            {
                program: {} if worker.missing else worker.turn(seconds)
                for program, worker in workers.items()
            }
        )
        speeds = {k: v.get("images/s") for k, v in found[-1].items()}
        print(f"round {number + 1}: {speeds}", file=sys.stderr, flush=True)
    for worker in workers.values():
        worker.process.stdin.close()
        worker.process.wait()
    return found


def run_digits(program: str, seed: int) -> dict[str, float]:
    """Trains the recipe with train.py; the wall time counts the compiling."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        subprocess.run(
            [
                *(sys.executable, ROOT / "train.py", f"--engine={program}"),
                *(f"--workdir={folder}/run", f"train.seed={seed}"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        wall = time.perf_counter() - begun
        result = json.loads(pathlib.Path(folder, "run/result.json").read_text())
    return {"wall_seconds": wall, "accuracy": result["accuracy"]}


def _table(rounds: list[dict[str, dict[str, float]]]) -> str:
    first = next(iter(rounds[0]))
    keys = list(rounds[0][first])
    leading = keys[0]
    lines = [
        f"| program | {leading} | ratio | {' | '.join(keys[1:])} |",
        "|---" * (len(keys) + 2) + "|",
    ]
    for program, found in rounds[0].items():
        if not found:
            lines.append(f"| {program} | not run" + " | " * len(keys) + " |")
            continue
        ratios = [r[program][leading] / r[first][leading] for r in rounds]
        values = [
            f"{statistics.median(r[program][key] for r in rounds):.4g}"
            for key in keys
        ]
        ratio = f"{statistics.median(ratios):.2f}"
        if program != first and len(ratios) > 1:
            low, _, high = statistics.quantiles(ratios, method="inclusive")
            ratio += f" ({low:.2f} to {high:.2f})"
        values.insert(1, ratio)
        lines.append(f"| {program} | {' | '.join(values)} |")
    return "\n".join(lines)


def conditions() -> str:
    """Returns the CPU, its vector instructions and the packages."""
    text = pathlib.Path("/proc/cpuinfo").read_text()
    values = dict(
        (part.strip() for part in line.split(":", 1))
        for line in text.splitlines()
        if ":" in line
    )
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    flags = [name for name in wanted if name in values["flags"].split()]
    packages = []
    for name in ("tensorflow", "jax", "keras", "flax", "torch", "timm"):
        try:
            packages.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            packages.append(f"no {name}")
    return (
        f"{os.cpu_count()} CPU cores, {values['model name']}, with "
        f"{', '.join(flags) or 'none of ' + ', '.join(wanted)}; load "
        f"{os.getloadavg()[0]:.1f} at the start; {', '.join(packages)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--case", choices=(*CASES, "digits_run"), default="s32")
    add("--mode", choices=("train", "infer"), default="train")
    add("--programs", default=DEFAULT, help=f"of {', '.join(PROGRAMS)}")
    add("--rounds", type=int, default=10)
    add("--seconds", type=float, default=3, help="a turn, at least")
    add("--worker", choices=PROGRAMS, help=argparse.SUPPRESS)
    add("--described", help=argparse.SUPPRESS)
    options = parser.parse_args()
    trains = options.mode == "train"
    if options.worker:
        serve(options.worker, read_case(options.described), trains)
        return
    programs = options.programs.split(",")
    if unknown := set(programs) - set(PROGRAMS):
        parser.error(f"--programs: unknown {', '.join(sorted(unknown))}")
    if options.case == "digits_run":
        programs = [p for p in programs if p in ("tensorflow", "jax")]
    print(conditions(), flush=True)
    if options.case == "digits_run":
        rounds = [
            {program: run_digits(program, seed) for program in programs}
            for seed in range(options.rounds)
        ]
    else:
        with tempfile.TemporaryDirectory() as folder:
            rounds = take_turns(
                programs,
                options.rounds,
                options.seconds,
                pathlib.Path(folder),
                f"--described={describe(options.case)}",
                f"--mode={options.mode}",
            )
    print(_table(rounds))


if __name__ == "__main__":
    main()
