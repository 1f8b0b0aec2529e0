"""The curves of several runs, and how their configs differ."""

import json
import pathlib

import numpy as np
import pytest

from keras_mixer.analysis import compare, curves
from keras_mixer.run import config as config_lib
from keras_mixer.run.config import ConfigError
from keras_mixer.run.workdir import WorkdirError
from tests.training.common import small


def write_run(path, *, lr, accuracies, finished=True, shots=()):
    """Writes what a run leaves."""
    path.mkdir(parents=True)
    config_lib.save(small(f"optim.lr={lr}"), path / "config.json")
    lines = []
    for i, accuracy in enumerate(accuracies, 1):
        lines.append({"step": i, "kind": "train", "loss": 2.0 / i})
        lines.append(
            {"step": i, "kind": "eval", "split": "test", "accuracy": accuracy}
        )
    lines += [
        {
            "step": len(accuracies),
            "kind": "fewshot",
            "data": "digits",
            "shots": n,
            "l2_reg": 1024.0,
            "accuracy": 0.5,
        }
        for n in shots
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 99, "ki'
    (path / "metrics.jsonl").write_text(text)
    if finished:
        (path / "result.json").write_text('{"seconds": 12.34}')
    return str(path)


def test_runs_are_compared(tmp_path):
    a = write_run(tmp_path / "x" / "run", lr=0.001, accuracies=[0.1, 0.4])
    b = write_run(
        tmp_path / "y" / "run",
        lr=0.002,
        accuracies=[0.2, 0.3, 0.6],
        finished=False,
        shots=(1, 5),
    )
    runs = compare.read([a, b])
    assert [run.name for run in runs] == ["x/run", "y/run"]
    np.testing.assert_array_equal(runs[1].curves.loss.steps, [1, 2, 3])
    np.testing.assert_array_equal(
        runs[1].curves.accuracy["test"].values, [0.2, 0.3, 0.6]
    )
    assert compare.differences(runs) == {"optim.lr": [0.001, 0.002]}
    table = compare.summary(runs)
    for text in ("optim.lr", "0.002", "0.6", "5-shot", "12.3"):
        assert text in table, text
    last = compare.content(runs)["last"]
    assert last[0]["accuracy on test"] == 0.4
    compare.write_csv(tmp_path / "c.csv", runs)
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert len(lines) == 1 + 4 + 6 + 2
    assert "y/run,accuracy on test,3,0.6" in lines
    files = compare.draw(tmp_path / "c.png", runs)
    assert all(file.stat().st_size > 1000 for file in files)
    steps, mean, low, high = curves.mean_and_range(
        [run.curves.accuracy["test"] for run in runs]
    )
    np.testing.assert_array_equal(steps, [1, 2])
    np.testing.assert_allclose(mean, [0.15, 0.35])
    np.testing.assert_allclose((low, high), [[0.1, 0.3], [0.2, 0.4]])


def axes_of(monkeypatch, tmp_path, runs):
    """Draws; returns the axes of the picture by row."""
    figures = []
    monkeypatch.setattr(
        compare.pictures, "save_all", lambda figure, _: figures.append(figure)
    )
    compare.draw(tmp_path / "c.png", runs)
    rows = {}
    for axes in figures[0].axes:
        rows.setdefault(axes.get_subplotspec().rowspan.start, []).append(axes)
    return list(rows.values())


def test_the_curves_of_one_run(tmp_path, monkeypatch):
    few = write_run(tmp_path / "few", lr=0.001, accuracies=[0.1, 0.4])
    many = write_run(tmp_path / "many", lr=0.001, accuracies=[0.1] * 21)
    markers = {}
    for path in (few, many):
        run = compare.read_run(pathlib.Path(path), "name")
        [[loss, accuracy]] = axes_of(monkeypatch, tmp_path, [run])
        assert accuracy.get_ylabel() == "accuracy on test"
        markers[path] = {x.lines[0].get_marker() for x in (loss, accuracy)}
    assert markers == {few: {"o"}, many: {"None"}}


def test_runs_on_different_data_share_no_axis(tmp_path, monkeypatch):
    paths = [
        write_run(tmp_path / name, lr=0.001, accuracies=[0.1, 0.4])
        for name in "abc"
    ]
    config = config_lib.override(small(), ["data.name=cifar10"])
    config_lib.save(config, tmp_path / "b" / "config.json")
    rows = axes_of(monkeypatch, tmp_path, compare.read(paths))
    drawn = [[[x.get_label() for x in a.lines] for a in row] for row in rows]
    assert drawn == [[["a", "c"]] * 2, [["b"]] * 2]
    assert [row[0].get_title() for row in rows] == [
        "trained on digits",
        "trained on cifar10",
    ]
    colors = {x.get_label(): x.get_color() for r in rows for x in r[0].lines}
    assert len(set(colors.values())) == 3


def write_evaluation(path, workdir, *, task="fewshot", shots=(1, 5), **more):
    """Writes what eval.py --output does."""
    whole = {"task": task, "workdir": workdir, "step": 2, **more}
    if task == "fewshot":
        whole["results"] = [
            {
                "data": "digits",
                "train_split": "digits train",
                "test_split": "digits test",
                "shots": n,
                "l2_reg": 1024.0,
                "accuracy": 0.1 * n,
                "accuracies": [0.1 * n - 0.02, 0.1 * n + 0.02],
                "count": 360,
            }
            for n in shots
        ]
    path.write_text(json.dumps(whole))
    return str(path)


def test_what_eval_measured_is_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a", lr=0.001, accuracies=[0.1, 0.4])
    write_run(tmp_path / "b", lr=0.001, accuracies=[0.1, 0.5])
    files = [
        write_evaluation(tmp_path / "1.json", "b"),
        write_evaluation(tmp_path / "2.json", "a/"),
        write_evaluation(
            tmp_path / "3.json",
            "a",
            task="classification",
            data="digits",
            split="train",
            accuracy=0.75,
        ),
    ]
    runs = compare.read(["a", "b"], evaluations=",".join(files))
    first, second = compare.content(runs)["last"]
    assert first["eval.py: accuracy on digits train"] == 0.75
    assert "eval.py: accuracy on digits train" not in second
    for last in (first, second):
        assert (
            last["eval.py: digits train / digits test 5-shot, l2 1024"] == 0.5
        )
        assert last["eval.py: at step"] == "2"
    assert "eval.py: digits train / digits test 5-shot" in compare.summary(runs)
    compare.write_csv(tmp_path / "c.csv", runs)
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert (
        'b,"eval.py: digits train / digits test 5-shot, l2 1024",2,0.5' in lines
    )
    figures = []
    monkeypatch.setattr(
        compare.pictures, "save_all", lambda f, _: figures.append(f)
    )
    compare.draw(tmp_path / "c.png", runs)
    (figure,) = figures
    assert len(figure.axes) == 3
    points = figure.axes[2].containers[0].lines[0]
    np.testing.assert_array_equal(points.get_xdata(), [1, 5])
    ydata = points.get_ydata().astype(float)
    np.testing.assert_allclose(ydata, [0.1, 0.5])
    low, high = figure.axes[2].containers[0].lines[2][0].get_segments()[1]
    np.testing.assert_allclose((low[1], high[1]), (0.48, 0.52))


def test_evaluations_that_are_of_no_run(tmp_path):
    runs = [
        write_run(tmp_path / name, lr=0.001, accuracies=[0.1]) for name in "ab"
    ]
    other = write_evaluation(tmp_path / "1.json", str(tmp_path / "c"))
    with pytest.raises(ConfigError, match=r"1\.json is of .*/c, which is not"):
        compare.read(runs, evaluations=other)
    released = write_evaluation(tmp_path / "2.json", None, weights="sam")
    with pytest.raises(ConfigError, match=r"2\.json is of sam"):
        compare.read(runs, evaluations=released)
    best = write_evaluation(tmp_path / "a1.json", runs[0], shots=(5,))
    latest = write_evaluation(tmp_path / "a2.json", runs[0], shots=(1, 5))
    with pytest.raises(ConfigError, match=r"a2\.json measures .*5-shot"):
        compare.read(runs, evaluations=f"{best},{latest}")
    (tmp_path / "3.json").write_text('{"rows": []}')
    for name in ("3.json", "4.json"):
        with pytest.raises(ConfigError, match=f"cannot read .*{name}"):
            compare.read(runs, evaluations=str(tmp_path / name))


def test_a_run_of_another_model_says_so(tmp_path):
    a = write_run(tmp_path / "a", lr=0.001, accuracies=[0.1])
    b = write_run(tmp_path / "b", lr=0.001, accuracies=[0.2])
    assert compare.content(compare.read([a, b]))["differences"] == {}
    other = tmp_path / "b" / "other_model.json"
    other.write_text('{"build_model": "a.b"}')
    runs = compare.read([a, b])
    assert compare.content(runs)["differences"] == {"model": ["Mixer", "a.b"]}
    assert "| a.b" in compare.summary(runs)
    for damaged in ("{}", '{"build'):
        other.write_text(damaged)
        with pytest.raises(ValueError, match=r"b/other_model\.json \("):
            compare.read([a, b])


def test_what_cannot_be_compared(tmp_path):
    a = write_run(tmp_path / "a", lr=0.001, accuracies=[0.1])
    with pytest.raises(ConfigError, match="two or more"):
        compare.read([a])
    with pytest.raises(ConfigError, match="twice"):
        compare.read([a, f"{a}/"])
    with pytest.raises(ConfigError, match="2 different names"):
        compare.read([a, str(tmp_path / "b")], "one")
    with pytest.raises(WorkdirError, match=r"no config\.json"):
        compare.read([a, str(tmp_path)])
    (tmp_path / "a" / "metrics.jsonl").unlink()
    with pytest.raises(WorkdirError, match=r"metrics\.jsonl"):
        curves.read(tmp_path / "a")
