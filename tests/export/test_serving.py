"""What servers get: warm-up requests, and the requests of docs/serving.md."""

import base64
import http.server
import importlib.util
import json
import re
import threading

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from keras_mixer.export import warmup
from tests.conftest import ROOT
from tests.export.small_model import NAMES, SIDE, call, picture

DOCUMENT = (ROOT / "docs" / "serving.md").read_text()
CLIENT, _ = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.M | re.S)
CONFIG = re.search(r"^```pbtxt\n(.*?)^```$", DOCUMENT, re.M | re.S)[1]


def messages():
    """Returns the class PredictionLog, from the .proto files of TF Serving.

    A tensor stays in bytes, which have the same encoding.
    """
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="warmup.proto")
    file.syntax, file.package = "proto3", "t"
    for message, fields in {
        "PredictionLog": [(6, "predict_log", "PredictLog", 1)],
        "PredictLog": [(1, "request", "PredictRequest", 1)],
        "PredictRequest": [
            (1, "model_spec", "ModelSpec", 1),
            (2, "inputs", "PredictRequest.InputsEntry", 3),
        ],
        "ModelSpec": [(1, "name", None, 1), (3, "signature_name", None, 1)],
    }.items():
        made = file.message_type.add(name=message)
        for number, name, kind, label in fields:
            made.field.add(
                number=number,
                name=name,
                label=label,
                type=field.TYPE_MESSAGE if kind else field.TYPE_STRING,
                type_name=kind and f".t.{kind}",
            )
        if message == "PredictRequest":
            entry = made.nested_type.add(name="InputsEntry")
            entry.options.map_entry = True
            for number, name, kind in (
                (1, "key", field.TYPE_STRING),
                (2, "value", field.TYPE_BYTES),
            ):
                entry.field.add(number=number, name=name, type=kind, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName("t.PredictionLog")
    return message_factory.GetMessageClass(found)


def requests_of(version, kind):
    file = str(version / "assets.extra" / "tf_serving_warmup_requests")
    for record in tf.data.TFRecordDataset(file).as_numpy_iterator():
        yield kind.FromString(record).predict_log.request


def to_array(value):
    if isinstance(value, bytes):
        tensor = tf.make_tensor_proto(0)
        tensor.ParseFromString(value)
        value = tensor
    return tf.make_ndarray(value)


@pytest.mark.parametrize("source", ["descriptor", "package"])
def test_warm_up_requests_are_answered(version, served, source):
    """The messages are those of the package, where it is installed."""
    if source == "descriptor":
        kind = messages()
    else:
        if importlib.util.find_spec("tensorflow_serving") is None:
            pytest.skip("needs tensorflow-serving-api")
        from tensorflow_serving.apis import prediction_log_pb2

        kind = prediction_log_pb2.PredictionLog
    seen = []
    for request in requests_of(version, kind):
        name = request.model_spec.signature_name
        inputs = {k: to_array(v) for k, v in request.inputs.items()}
        (value,) = inputs.values()
        answer = served.signatures[name](
            **{k: tf.constant(v) for k, v in inputs.items()}
        )
        assert answer["top_k_names"].shape == (1, 5)
        seen.append((name, value.shape))
    assert seen == [
        ("serving_default", (1, SIDE, SIDE, 3)),
        ("serve_bytes", (1,)),
    ]


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 3000000])
def test_lengths(size):
    encoded = warmup._field(2, b"x" * size)
    field = descriptor_pb2.FileDescriptorProto.FromString(encoded)
    assert field.package == "x" * size  # field 2 of that message, a text


class Server(http.server.BaseHTTPRequestHandler):
    """Decodes requests as TensorFlow Serving's REST API does."""

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        request = json.loads(self.rfile.read(length))
        assert self.path == "/v1/models/mixer:predict"
        files = [
            base64.b64decode(x["image_bytes"]["b64"], validate=True)
            for x in request["instances"]
        ]
        answer = call(self.server.served, request["signature_name"], files)
        rows = {key: value.numpy() for key, value in answer.items()}
        rows["top_k_names"] = np.strings.decode(
            rows["top_k_names"].astype(bytes), "utf-8"
        )
        predictions = [
            {key: value[i].tolist() for key, value in rows.items()}
            for i in range(len(files))
        ]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"predictions": predictions}).encode())

    def log_message(self, *_):
        pass


def test_the_client_of_the_document(served, tmp_path):
    paths = []
    for i in range(2):
        paths.append(tmp_path / f"{i}.png")
        encoded = tf.io.encode_png(picture(seed=i)).numpy()
        paths[-1].write_bytes(encoded)
    client: dict = {}
    exec(CLIENT, client)
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        server.served = served
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = client["URL"].replace(
            "localhost:8501", f"127.0.0.1:{server.server_port}"
        )
        found = client["classify"](*paths, url=url)
    for i, best in enumerate(found):
        want = call(served, "serving_default", picture(seed=i)[None])
        indices = want["top_k_indices"].numpy()[0]
        assert [name for name, _ in best] == [NAMES[j] for j in indices]
        np.testing.assert_allclose(
            [p for _, p in best], want["top_k_probabilities"][0], rtol=1e-5
        )


def test_the_configuration_of_triton(served):
    signature = re.search(r'string_value: "(\w+)"', CONFIG)[1]
    call = served.signatures[signature]
    (arguments,) = call.structured_input_signature[1:]
    types = {"TYPE_STRING": tf.string, "TYPE_FP32": tf.float32}
    tensors = {**arguments, **call.structured_outputs}
    found = re.findall(r'{ name: "(\w+)" data_type: (\w+)', CONFIG)
    assert len(found) == 4
    for name, kind in found:
        assert tensors[name].dtype == types[kind]
