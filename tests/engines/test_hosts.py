import pytest

from keras_mixer.engines import hosts


def test_no_cluster_without_tf_config():
    assert hosts.cluster_of_tf_config({}) == {}
    assert hosts.cluster_of_tf_config({"TF_CONFIG": ""}) == {}


def test_the_cluster_of_tf_config():
    text = '{"cluster": {"chief": ["a:1"], "worker": ["b:1", "c:1"]}}'
    assert hosts.cluster_of_tf_config({"TF_CONFIG": text}) == {
        "chief": ["a:1"],
        "worker": ["b:1", "c:1"],
    }


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"cluster": {"worker": 1}}'])
def test_a_tf_config_that_cannot_be_read(text):
    with pytest.raises(
        hosts.EngineError, match="Cannot read.*TF_CONFIG.*Received"
    ):
        hosts.cluster_of_tf_config({"TF_CONFIG": text})


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, None),
        ({"TPU_NAME": ""}, None),
        ({"TPU_NAME": "local"}, "local"),
        ({"TPU_NAME": "mine", "COLAB_TPU_ADDR": "10.0.0.2:8470"}, "mine"),
        ({"COLAB_TPU_ADDR": "10.0.0.2:8470"}, "grpc://10.0.0.2:8470"),
        ({"COLAB_TPU_ADDR": "grpc://10.0.0.2:8470"}, "grpc://10.0.0.2:8470"),
    ],
)
def test_the_tpu_that_the_environment_names(environment, name):
    assert hosts.tpu_of_environment(environment) == name


def test_the_hosts_of_a_slice():
    assert hosts.hosts_of_slice({}) == 1
    assert hosts.hosts_of_slice({"TPU_WORKER_HOSTNAMES": "localhost"}) == 1
    assert hosts.hosts_of_slice({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}) == 4


@pytest.mark.parametrize(
    ("vendors", "found"),
    [(["0x1ae0"], {"0x1ae0"}), (["0x8086", "0x10de"], {"0x8086", "0x10de"})],
)
def test_vendors_of_a_vfio_group(tmp_path, vendors, found):
    for i, vendor in enumerate(vendors):
        device = tmp_path / "12" / "devices" / f"0000:00:0{i}.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text(vendor + "\n")
    assert hosts._vendors_of("12", str(tmp_path)) == found
    assert hosts._vendors_of("13", str(tmp_path)) == set()


@pytest.mark.parametrize(
    ("strategy", "tpu", "virtual_devices", "refused"),
    [
        ("auto", None, 4, ""),
        ("mirrored", None, 2, ""),
        ("one_device", None, 1, ""),
        ("tpu", "local", None, ""),
        ("one_device", None, 4, "4 rehearses .* --strategy=one_device would"),
        ("multi_worker", None, 2, "--strategy=multi_worker would not use"),
        ("tpu", None, 2, "--strategy=tpu would not use them. Leave out"),
        ("auto", "local", 2, "--tpu=local would not use them"),
        ("mirrored", "pod", None, "--tpu=pod goes with --strategy=tpu"),
        ("auto", None, 0, "virtual_devices must be positive. Received: 0"),
    ],
)
def test_no_device_is_left_unused(strategy, tpu, virtual_devices, refused):
    if not refused:
        hosts.check_device_flags(strategy, tpu, virtual_devices)
        return
    with pytest.raises(hosts.EngineError, match=refused):
        hosts.check_device_flags(strategy, tpu, virtual_devices)
