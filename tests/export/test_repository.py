"""A run as a repository of the Hugging Face Hub, and back."""

import base64
import hashlib
import json

import numpy as np
import pytest

from keras_mixer import models, weights
from keras_mixer.export import ExportError, repository
from keras_mixer.run import config as config_lib
from keras_mixer.training.assembly import Trained
from tests.export.small_model import (
    CLASSES,
    NAMES,
    POLICY,
    SIDE,
    VARIANT,
    make_model,
)
from tests.weights import test_hub
from tests.weights.test_hub import COMMIT, connect as connect

RESULT = {"step": 40, "split": "test", "accuracy": 0.8125, "count": 360}


@pytest.fixture(scope="module")
def trained():
    sizes = [f"model.{k}={v}" for k, v in vars(VARIANT).items()]
    config = config_lib.override(
        config_lib.Config(),
        [
            *("model.variant=custom", f"model.image_size={SIDE}", *sizes),
            *(f"augment.eval_policy={POLICY}", "data.name=digits"),
        ],
    )
    return Trained(make_model(), config, NAMES, "runs/x (step 40)", 40)


def test_a_folder_round_trips(trained, tmp_path, capsys):
    folder = tmp_path / "out" / "pushed"
    repository.check_target(str(folder), replace=False)
    where = repository.push(trained, str(folder), RESULT)
    assert where == str(folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    found = weights.read(folder)
    ours = weights.from_model(trained.model, "")
    assert found.values.keys() == ours.values.keys()
    for key, value in ours.values.items():
        np.testing.assert_array_equal(found.values[key], value)
    assert found.exact_gelu is False
    assert found.class_names == NAMES
    assert found.preprocessing.eval_policy(SIDE) == POLICY
    assert found.preprocessing.is_ours
    assert capsys.readouterr().err == ""  # nothing is folded or unknown
    card = (folder / "README.md").read_text()
    content = (folder / "model.safetensors").read_bytes()
    for part in (
        "| digits | test | 0.8125 | 360 |",
        hashlib.sha256(content).hexdigest(),
        POLICY,
        "# license: choose one",
        "timm has no model of these dimensions",
        f'weights="{folder}"',
        '"variant": "custom"',
    ):
        assert part in card
    assert (
        json.loads((folder / "config.json").read_text())["architecture"]
        == "keras_mixer"
    )
    # What the card says builds the model.
    code = card.partition("```python\n")[2].partition("```")[0]
    scope: dict = {}
    exec(code, scope)
    assert scope["names"] == NAMES
    with pytest.raises(ExportError, match="exists.*--yes"):
        repository.check_target(str(folder), replace=False)
    repository.check_target(str(folder), replace=True)
    repository.push(trained._replace(step=20), str(folder), RESULT)
    assert "Not measured" in (folder / "README.md").read_text()


def test_a_card_names_no_folder_of_this_machine(trained, tmp_path):
    config = config_lib.override(
        trained.config,
        [
            "data.name=folder:/home/me/photos",
            "data.data_dir=/home/me/tfds",
            "init.weights=/home/me/b16.npz",
        ],
    )
    repository.write(
        trained._replace(config=config), tmp_path, address="hf:me/photos"
    )
    card = (tmp_path / "README.md").read_text()
    assert "/home" not in card
    for part in ("Mixer custom, folder:photos", '"weights": "b16.npz"'):
        assert part in card


@pytest.mark.parametrize("variant", models.VARIANTS)
def test_names_of_timm(variant):
    dims = models.get_variant(variant)
    letter, patch = variant.split("/")
    known = variant not in ("S/8", "H/14")
    want = f"mixer_{letter.lower()}{patch}_224" if known else None
    assert repository.timm_name(dims) == want


def test_the_config_is_one_of_timm(trained):
    config = config_lib.override(
        trained.config,
        [
            *("model.variant=S/16", "model.patch_size=null"),
            *("model.num_blocks=null", "model.hidden_dim=null"),
            "model.channels_mlp_dim=null",  # tokens_mlp_dim stays 12
        ],
    )
    content = repository._config_json(trained._replace(config=config))
    assert content["architecture"] == "mixer_s16_224"
    arguments = content["model_args"]
    assert arguments["img_size"] == SIDE
    # As timm computes the widths.
    assert [int(x * 512) for x in arguments["mlp_ratio"]] == [12, 2048]
    inner = content["pretrained_cfg"]
    assert inner["crop_pct"] == SIDE / 36
    assert inner["num_classes"] == CLASSES


class Writable(test_hub.Answer):
    """Takes a commit, whose files are in its text."""

    def do_GET(self, body=True):  # noqa: N802
        if self.path.startswith("/api/models/me/mixer"):
            if not any(self.server.folder.iterdir()):
                return self.refuse(404, "RepoNotFound")
            return self.answer({"id": "me/mixer", "sha": COMMIT})
        return super().do_GET(body)

    def answer(self, content):
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self):  # noqa: N802
        text = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append(self.path)
        url = f"{self.server.address}/me/mixer"
        if self.headers.get("Authorization") != "Bearer hf_right":
            return self.refuse(401, "")
        if self.path == "/api/repos/create":
            assert b"private" in text
            return self.answer({"url": url})
        if "/preupload/" in self.path:
            files = [f["path"] for f in json.loads(text)["files"]]
            return self.answer(
                {
                    "files": [
                        {
                            "path": path,
                            "uploadMode": "regular",
                            "shouldIgnore": False,
                        }
                        for path in files
                    ]
                }
            )
        if "/commit/" in self.path:
            for line in map(json.loads, text.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    content = base64.b64decode(value["content"])
                    (self.server.folder / value["path"]).write_bytes(content)
            return self.answer(
                {
                    "success": True,
                    "commitOid": COMMIT,
                    "commitUrl": f"{url}/commit/{COMMIT}",
                }
            )
        return self.answer({})


def test_a_push_to_the_hub_round_trips(trained, tmp_path, connect, monkeypatch):
    (tmp_path / "served").mkdir()
    with test_hub.serving(tmp_path / "served", Writable) as server:
        connect(server.address, HF_TOKEN="hf_wrong")
        repository.check_target("hf:me/mixer", replace=False)
        with pytest.raises(weights.WeightsError, match="Cannot push.*HF_TOKEN"):
            repository.push(trained, "hf:me/mixer")
        connect(server.address, HF_TOKEN="hf_right")
        assert repository.push(trained, "hf:me/mixer") == "hf:me/mixer"
        found = weights.read("hf:me/mixer")
        with pytest.raises(ExportError, match="hf:me/mixer exists.*--yes"):
            repository.check_target("hf:me/mixer", replace=False)
    assert found.class_names == NAMES
    np.testing.assert_array_equal(
        found.values["head/bias"], trained.model.get_layer("head").bias
    )
    with pytest.raises(ExportError, match="main branch"):
        repository.check_target("hf:me/mixer@v1", replace=True)
