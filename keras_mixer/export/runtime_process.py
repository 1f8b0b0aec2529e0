"""Answers with one file and its runtime alone, for runtimes.py.

    python -P runtime_process.py KIND FILE

KIND is onnx, litert or openvino. Requests come on stdin and answers go to
stdout, each an .npz behind its length (int64): first {"version"}; then, for
{"image", "repeats"}, the outputs by name and the "seconds" of each repeat.
"""

import importlib.abc
import importlib.metadata
import io
import os
import struct
import sys
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np

FORBIDDEN = ("keras_mixer", "keras", "tensorflow", "jax", "torch")
_OUTPUTS = ("logits", "probabilities")
_LENGTH = struct.Struct("<q")
_WARM = 2  # calls before those that are timed
_PATIENCE = 4.0  # seconds after which a call is no longer repeated

Call = Callable[[np.ndarray], dict[str, np.ndarray]]


def send(stream: IO[bytes], **arrays: Any) -> None:
    """Writes arrays that `receive` reads."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    stream.write(_LENGTH.pack(buffer.tell()) + buffer.getbuffer())
    stream.flush()


def receive(stream: IO[bytes]) -> Mapping[str, np.ndarray] | None:
    """Returns the next arrays, or None if the other process has ended."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    content = stream.read(length)
    if len(content) < length:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


class _Forbid(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name.partition(".")[0] in FORBIDDEN:
            raise ImportError(f"the runtime alone has no {name}")


def _open_onnx(file: str) -> Call:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        file, providers=["CPUExecutionProvider"]
    )
    names = [x.name for x in session.get_outputs()]
    return lambda image: dict(
        zip(names, session.run(names, {"image": image}), strict=True)
    )


def _open_litert(file: str) -> Call:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(file, num_threads=os.cpu_count())
    run = interpreter.get_signature_runner()
    return lambda image: dict(run(image=image))


def _open_openvino(file: str) -> Call:
    import openvino

    # On CPUs with bfloat16 OpenVINO would compute in it.
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(file, "CPU", exact)

    def call(image: np.ndarray) -> dict[str, np.ndarray]:
        found = model({"image": image})  # by each of several names
        return {name: found[name].copy() for name in _OUTPUTS}

    return call


# Kind -> how to open a file, and the runtime's name of pip.
_RUNTIMES = {
    "onnx": (_open_onnx, "onnxruntime"),
    "litert": (_open_litert, "ai-edge-litert"),
    "openvino": (_open_openvino, "openvino"),
}


def open_file(kind: str, file: str) -> Call:
    """Returns a function from uint8 `[batch, side, side, 3]` to outputs."""
    return _RUNTIMES[kind][0](file)


def answer(
    call: Call, image: np.ndarray, repeats: int
) -> dict[str, np.ndarray | list[float]]:
    """Returns the outputs by name, and the seconds of each repeat."""
    found: dict[str, Any] = call(image)
    seconds: list[float] = []
    if repeats:
        for _ in range(_WARM - 1):
            call(image)
    while len(seconds) < repeats and sum(seconds) < _PATIENCE:
        begun = time.perf_counter()
        call(image)
        seconds.append(time.perf_counter() - begun)
    return {**found, "seconds": seconds}


def main() -> None:
    kind, file = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a runtime prints is no answer
    sys.meta_path.insert(0, _Forbid())
    call, package = open_file(kind, file), _RUNTIMES[kind][1]
    loaded = [name for name in FORBIDDEN if name in sys.modules]
    if loaded:
        raise ImportError(f"{package} imports {', '.join(loaded)}")
    send(answers, version=importlib.metadata.version(package))
    while (request := receive(sys.stdin.buffer)) is not None:
        found = answer(call, request["image"], int(request["repeats"]))
        send(answers, **found)


if __name__ == "__main__":
    main()
