"""Weights of the Hugging Face Hub, from a server on the loopback address.

It answers as the Hub does: what huggingface_hub makes of it, and not what it is
called with, is tested.
"""

import contextlib
import hashlib
import http.server
import re
import socket
import sys
import threading
import time

import numpy as np
import pytest

from keras_mixer import models, weights
from keras_mixer.run import files
from keras_mixer.weights import hub, parameters as parameters_lib
from tests import reference
from tests.weights.test_preprocessing import write_repository
from tests.weights.test_weights import OPTIONS, SMALL, random_parameters

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1", "pr/7", COMMIT)


class Hub(http.server.ThreadingHTTPServer):
    """Serves one repository, me/mixer; `cut` bytes of a file are missing."""

    def __init__(self, folder, answer):
        super().__init__(("127.0.0.1", 0), answer)
        self.folder, self.cut, self.got = folder, 0, []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Answer(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", f"refused: {code}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.rpartition("/")
        file = self.server.folder / name
        if repository == "me/private":
            return self.refuse(401, "RepoNotFound")
        if repository == "me/gated":
            return self.refuse(403, "GatedRepo")
        if repository != "me/mixer":
            return self.refuse(404, "RepoNotFound")
        if revision.replace("%2F", "/") not in REVISIONS:
            return self.refuse(404, "RevisionNotFound")
        if not file.is_file():
            return self.refuse(404, "EntryNotFound")
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.server.got.append(name)
            self.wfile.write(content[: len(content) - self.server.cut])
        return None


@contextlib.contextmanager
def serving(folder, answer=Answer):
    with Hub(folder, answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def values():
    return random_parameters(SMALL, side=8)


@pytest.fixture
def server(tmp_path, values):
    config = {"pretrained_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1]}}
    write_repository(tmp_path / "repository", values, config)
    with serving(tmp_path / "repository") as found:
        yield found


def forget():
    """Forgets the package, which reads the environment when it is imported."""
    for name in [n for n in sys.modules if n.startswith("huggingface_hub")]:
        del sys.modules[name]


@pytest.fixture
def connect(tmp_path, monkeypatch):
    """Imports huggingface_hub anew, with an endpoint and other variables."""
    pytest.importorskip("huggingface_hub")
    parameters_lib.say_once.cache_clear()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def connect(address, **variables):
        monkeypatch.setenv("HF_ENDPOINT", address)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        forget()

    yield connect
    forget()


def refused(address):
    """Returns the one line that refuses an address."""
    with pytest.raises(weights.WeightsError) as error:
        weights.read(address)
    text = str(error.value)
    assert text.startswith(f"Cannot download {address}: ")
    assert "\n" not in text
    return text


def test_a_repository_is_downloaded_once(server, connect, values, capsys):
    connect(server.address)
    model = models.Mixer(SMALL, weights="hf:me/mixer", **OPTIONS)
    x = reference.random_images(3, 8, 8, 3)
    want = reference.forward((x + 1) / 2, values, exact=True)
    assert reference.relative_error(model(x), want) <= 1e-5
    assert f"hf:me/mixer@{COMMIT[:12]}: its input" in capsys.readouterr().err
    assert sorted(server.got) == ["config.json", "model.safetensors"]
    for revision in ("", *(f"@{name}" for name in REVISIONS)):
        found = weights.get(f"hf:me/mixer{revision}", "B/16")
        assert found.source == f"hf:me/mixer@{COMMIT[:12]}"
    assert len(server.got) == 2
    # Without a network, and without asking for one, from the cache.
    server.shutdown()
    connect("http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    for address in ("hf:me/mixer", f"hf:me/mixer@{COMMIT}"):
        again = weights.read(address)
        np.testing.assert_array_equal(
            again.values["stem/bias"], found.values["stem/bias"]
        )
    assert "HF_HUB_OFFLINE is set" in refused("hf:me/other")


def test_what_the_hub_refuses_is_named(server, connect):
    connect(server.address)
    for address, message in (
        ("hf:me/mixer@v2", "no branch, tag or commit 'v2'"),
        ("hf:me/private", "it is private.*HF_TOKEN"),
        ("hf:me/missing", "no such repository"),
        ("hf:me/gated", "Ask on its page, then.*HF_TOKEN"),
    ):
        assert re.search(message, refused(address)), address
    (server.folder / "config.json").unlink()
    assert "it has no config.json" in refused("hf:me/mixer")


def test_a_cut_file_is_no_cache_hit(server, connect, monkeypatch):
    connect(server.address)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    server.cut = 10
    assert re.search("complete message|Consistency", refused("hf:me/mixer@v1"))
    server.cut = 0
    assert weights.read("hf:me/mixer@v1").num_classes == 7


def test_no_network_is_named(connect, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)  # it tries again
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    connect(f"http://127.0.0.1:{port}")
    assert f"127.0.0.1:{port} cannot be reached" in refused("hf:me/mixer")


def test_the_package_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        weights.WeightsError, match="hf:me/mixer needs.*pip install"
    ):
        weights.read("hf:me/mixer")


@pytest.mark.parametrize(
    "address",
    [
        *("hf:", "hf:mixer", "hf:me/", "hf:/mixer", "hf:me/mixer@"),
        *("hf:me/mixer/x", "hf:me mixer/x", "hf:me/mixer@a b", "hf:../x"),
        "hf:https://huggingface.co/me/mixer",
    ],
)
def test_addresses(address):
    with pytest.raises(ValueError, match="hf:owner/name@revision"):
        models.Mixer(SMALL, weights=address, **OPTIONS)


def test_addresses_are_parsed():
    assert files.parse_hub("hf:me/a.b-c") == ("me/a.b-c", None)
    assert files.parse_hub("hf:me/x@refs/pr/1") == ("me/x", "refs/pr/1")


def test_misnamed_weights_of_timm_say_so(
    connect, monkeypatch, capsys, tmp_path
):
    connect("http://127.0.0.1:9")
    import huggingface_hub

    file = tmp_path / COMMIT / "config.json"
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *_, **__: str(file)
    )
    for _ in range(2):
        hub.download("hf:timm/mixer_l16_224.goog_in21k_ft_in1k")
        hub.download("hf:timm/mixer_l16_224.goog_in21k")
    assert capsys.readouterr().err.count("are not fine-tuned") == 1
