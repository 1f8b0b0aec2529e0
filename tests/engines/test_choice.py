"""Which engine trains, and what the environment gets to know of it."""

import pytest

from keras_mixer.engines import choice, hosts
from keras_mixer.engines.hosts import EngineError

CHIP = ("/dev/accel0",)


def choose(asked="auto", environment=(), *, flags=(), tpus=(), jax=True):
    # No keras.json of this machine.
    environment = {"KERAS_HOME": "/nowhere", **dict(environment)}
    return choice.choose_engine(
        asked,
        environment,
        flags=flags,
        tpus=tpus,
        installed=lambda module: module != "jax" or jax,
    )


@pytest.mark.parametrize(
    ("arguments", "engine", "reason"),
    [
        ({}, "tensorflow", "there is no TPU"),
        ({"tpus": CHIP}, "jax", r"there is a TPU \(/dev/accel0\)"),
        ({"tpus": CHIP, "jax": False}, "tensorflow", "JAX is missing"),
        ({"environment": {"ISTPUVM": "1"}}, "jax", "the environment says so"),
        (
            {"environment": {"KERAS_BACKEND": "jax"}},
            "jax",
            "KERAS_BACKEND says so",
        ),
        (
            {"environment": {"KERAS_BACKEND": "tensorflow"}, "tpus": CHIP},
            "tensorflow",
            "KERAS_BACKEND says so",
        ),
        (
            {"flags": ["--tpu=local"], "tpus": CHIP},
            "tensorflow",
            "--tpu=local belongs to it",
        ),
        ({"asked": "jax"}, "jax", "--engine=jax asks for it"),
        ({"asked": "tensorflow", "tpus": CHIP}, "tensorflow", "asks for it"),
    ],
)
def test_the_engine_and_the_reason(arguments, engine, reason):
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(choose(**arguments).reason)
    assert choose(**arguments).name == engine


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {
                "asked": "tensorflow",
                "environment": {"KERAS_BACKEND": "jax"},
            },
            "--engine=tensorflow contradicts KERAS_BACKEND=jax. Unset",
        ),
        (
            {"asked": "jax", "environment": {"KERAS_BACKEND": "tensorflow"}},
            "--engine=jax contradicts KERAS_BACKEND=tensorflow",
        ),
        ({"asked": "jax", "jax": False}, "JAX is not installed. Install it"),
        (
            {"environment": {"KERAS_BACKEND": "jax"}, "jax": False},
            r"KERAS_BACKEND says so\), and JAX is not installed",
        ),
        (
            {"environment": {"KERAS_BACKEND": "torch"}},
            "needs Keras' backend tensorflow or jax. Received: 'torch'",
        ),
        (
            {"asked": "jax", "flags": ["--strategy=mirrored"]},
            "--strategy=mirrored belongs to --engine=tensorflow",
        ),
    ],
)
def test_the_wrong_mix_is_one_error(arguments, message):
    with pytest.raises(EngineError, match=message):
        choose(**arguments)
    with pytest.raises(ValueError, match="engine must be one of.*'torch'"):
        choose("torch")


@pytest.mark.parametrize(
    ("backend", "engine"), [("jax", "jax"), ("tensorflow", "jax")]
)
def test_keras_json_counts_unless_keras_wrote_it(tmp_path, backend, engine):
    (tmp_path / "keras.json").write_text(f'{{"backend": "{backend}"}}')
    environment = {"KERAS_HOME": str(tmp_path)}
    found = choose(environment=environment, tpus=CHIP)
    assert found.name == engine
    assert ("keras.json" in found.reason) == (backend == "jax")


@pytest.mark.parametrize(
    ("name", "files", "virtual", "platforms"),
    [
        ("jax", (), False, "cpu"),
        ("jax", CHIP, False, None),
        ("jax", CHIP, True, "cpu"),
        ("tensorflow", (), False, None),
    ],
)
def test_the_environment_of_an_engine(
    monkeypatch, name, files, virtual, platforms
):
    monkeypatch.setattr(hosts, "tpu_files", lambda: files)
    monkeypatch.setattr(hosts, "nvidia_files", lambda: ())
    monkeypatch.delitem(choice.sys.modules, "keras", raising=False)
    environment = {}
    choice.use_engine(choice.Choice(name, ""), environment, virtual=virtual)
    assert environment["KERAS_BACKEND"] == name
    assert environment.get("JAX_PLATFORMS") == platforms


def test_keras_is_not_changed_once_it_is_imported():
    import keras

    other = {"tensorflow": "jax", "jax": "tensorflow"}[keras.backend.backend()]
    with pytest.raises(EngineError, match="before Keras is imported"):
        choice.use_engine(choice.Choice(other, ""), {})


@pytest.mark.parametrize(
    ("text", "message"),
    [("{,}", "keras.json: line 1, column 2: "), ("[]", "Keras reads its")],
)
def test_a_damaged_keras_json_is_named(tmp_path, text, message):
    (tmp_path / "keras.json").write_text(text)
    with pytest.raises(EngineError, match=message):
        choice.configured_backend({"KERAS_HOME": str(tmp_path)})
