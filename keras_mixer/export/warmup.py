"""Requests that TensorFlow Serving answers when it loads a version.

The first request would otherwise wait for what TensorFlow starts and, with XLA,
compiles. They are records of the message PredictionLog, in a file that the
server looks for. The package tensorflow-serving-api has this message, for one
release of TensorFlow each; a request needs six of its fields, all nested
messages and texts, whose encoding is a dozen lines. The numbers of the fields
are those of prediction_log.proto, predict.proto and model.proto in
tensorflow_serving/apis, and cannot change without breaking all clients.
"""

import pathlib

import tensorflow as tf

FILE = pathlib.PurePath("assets.extra", "tf_serving_warmup_requests")

# Numbers of fields.
_PREDICT_LOG = 6  # of PredictionLog
_REQUEST = 1  # of PredictLog
_MODEL_SPEC, _INPUTS = 1, 2  # of PredictRequest
_SIGNATURE_NAME = 3  # of ModelSpec
_KEY, _VALUE = 1, 2  # of an entry of a map


def write(version: pathlib.Path, side: int) -> None:
    """Writes a request of one image for pixels and one for a file.

    The images are black, of `side` x `side` pixels.

    Raises:
      OSError, tf.errors.OpError: The file cannot be written.
    """
    pixels = tf.zeros([1, side, side, 3], tf.uint8)
    jpeg = tf.io.encode_jpeg(pixels[0])
    file = version / FILE
    file.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        writer.write(_request("serving_default", "image", pixels))
        writer.write(_request("serve_bytes", "image_bytes", jpeg[None]))


def _request(signature: str, name: str, value: tf.Tensor) -> bytes:
    """Returns a PredictionLog of a request with one input."""
    tensor = tf.make_tensor_proto(value).SerializeToString()
    request = _field(_MODEL_SPEC, _field(_SIGNATURE_NAME, signature.encode()))
    request += _field(
        _INPUTS, _field(_KEY, name.encode()) + _field(_VALUE, tensor)
    )
    return _field(_PREDICT_LOG, _field(_REQUEST, request))


def _field(number: int, content: bytes) -> bytes:
    """Encodes a text or a message: number and kind, length, content."""
    length, size = bytearray(), len(content)
    while size > 127:  # seven bits a byte, the lowest first
        length.append(size % 128 + 128)
        size //= 128
    length.append(size)
    return bytes([number * 8 + 2]) + bytes(length) + content
