import json

import pytest

from keras_mixer.run import progress


@pytest.mark.parametrize(
    ("seconds", "want"),
    [
        (0.4, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (185, "3m05s"),
        (7620, "2h07m"),
        (3 * 86400 + 4 * 3600, "3d04h"),
    ],
)
def test_durations(seconds, want):
    assert progress.format_seconds(seconds) == want


def make(workdir, start_step=0, cores=2, num_classes=10):
    return progress.Progress(
        workdir,
        total_steps=100,
        start_step=start_step,
        batch_size=8,
        cores=cores,
        num_classes=num_classes,
        seconds=lambda: 12.34567,
    )


def report(p, step):
    p.train(step, loss=1.5, lr=0.1, grad_norm=2.0, images_per_second=80.0)
    p.evaluation(
        step,
        split="test",
        accuracy=0.25,
        top5_accuracy=0.5,
        loss=2.0,
        count=8,
    )


def test_lines_for_programs_and_people(tmp_path, capsys):
    p = make(tmp_path)
    report(p, 20)
    p.close()
    lines = [
        json.loads(line)
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines == [
        {
            "step": 20,
            "kind": "train",
            "loss": 1.5,
            "lr": 0.1,
            "grad_norm": 2.0,
            "images_per_second": 80.0,
            "time": 12.346,
        },
        {
            "step": 20,
            "kind": "eval",
            "split": "test",
            "accuracy": 0.25,
            "top5_accuracy": 0.5,
            "loss": 2.0,
            "count": 8,
            "time": 12.346,
        },
    ]
    shown = capsys.readouterr().out
    # 80 steps of 8 images are left, at 80 images a second.
    for part in ("20/100", "80 img/s", "40 img/s/core", "ETA 8s", "2 of 8"):
        assert part in shown
    assert "top-5 0.5000" in shown
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_lines_leave_out_what_says_nothing(tmp_path, capsys):
    p = make(tmp_path, cores=1, num_classes=5)
    report(p, 20)
    shown = capsys.readouterr().out
    assert "80 img/s  ETA" in shown
    assert "img/s/core" not in shown
    assert "top-5" not in shown
    report(p, 100)  # the end
    p.close()
    assert "ETA" not in capsys.readouterr().out


def test_a_restored_run_writes_no_line_twice(tmp_path):
    p = make(tmp_path)
    for step in (10, 20, 30):
        report(p, step)
    p.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 40, "ki')  # killed here
    p = make(tmp_path, start_step=20)
    report(p, 30)
    p.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == [10, 10, 20, 20, 30, 30]


def test_the_stopwatch_leaves_pauses_out(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    watch = progress.Stopwatch()
    assert watch.rate() is None
    for _ in range(2):
        watch.start()
        now[0] += 2
        watch.stop(images=10)
        now[0] += 100  # an evaluation
    assert watch.rate() == 5
    watch.reset()
    assert watch.rate() is None


def test_few_shot_lines(tmp_path, capsys):
    p = make(tmp_path)
    scores = [
        {
            "data": "pets",
            "shots": shots,
            "l2_reg": 1024.0,
            "accuracy": shots / 10,
            "accuracies": [shots / 10],
            "count": 7,
        }
        for shots in (1, 5)
    ]
    p.fewshot(30, scores, seconds=3.0)
    p.close()
    lines = [
        json.loads(line)
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines == [
        {"step": 30, "kind": "fewshot", **x, "time": 12.346} for x in scores
    ]
    shown = capsys.readouterr().out
    assert "step 30/100  pets: 1-shot 0.1000  5-shot 0.5000  in 3s" in shown
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"fewshot/pets/5-shot" in events.read_bytes()


def test_countdown_of_a_long_pass(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    tell = progress.Countdown("pets test", 1000)
    for seconds, done in ((60, 100), (61, 150), (75, 400), (76, 420)):
        now[0] = seconds
        tell(done)
    # 300 images in 15 s, after the first batch, which compiles; 600 are left.
    assert capsys.readouterr().err == (
        "pets test: 400 of 1,000 images, 20 img/s, ETA 30s\n"
    )
