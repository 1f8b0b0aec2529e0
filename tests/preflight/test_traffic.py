"""Traffic of programs written by hand, whose figures follow from the shapes."""

import pytest

from keras_mixer.preflight import traffic
from tests.conftest import ROOT

HLO = (ROOT / "tests" / "preflight" / "by_hand.hlo").read_text()

COPY = 4000  # 1000 float32 into the chip; what leaves HBM is counted
SLICE = 8 * 4000  # not all 64 rows
FUSION = 4000 + 4000 + 1000  # one operand on the chip; two results
LOOP = 3 * 8000  # its body, three times


def test_traffic_of_a_program_written_by_hand():
    """What is fused is not counted apart from its fusion."""
    counted = traffic.count(HLO)
    assert counted.hbm_bytes == COPY + SLICE + FUSION + LOOP
    assert counted.estimated_cycles == 100 + 3 * 7
    assert counted.longest_loop == 3


@pytest.mark.parametrize(
    ("name", "read", "written"),
    [
        ("start", COPY, 0),
        ("slice", SLICE, 0),
        ("f", 4000, 4000 + 1000),
        ("y", 4000, 4000),
        ("done", 0, 0),
        ("loop", 0, 0),
    ],
)
def test_traffic_of_an_instruction(name, read, written):
    _, computations = traffic._parse(HLO)
    every = {i.name: i for body in computations.values() for i in body}
    shapes = {name: i.results for name, i in every.items()}
    assert traffic._move(every[name], shapes) == (read, written)


def test_a_loops_length_is_read_off_its_condition():
    text = HLO.replace('{"known_trip_count":{"n":"3"}}', "{}")
    condition = """%cond (t: (s32[], f32[1000])) -> pred[] {
  %t.1 = (s32[]{:T(128)}, f32[1000]{0:T(1024)}) parameter(0)
  %i.1 = s32[]{:T(128)S(6)} get-tuple-element(%t.1), index=0
  %four = s32[]{:T(128)} constant(4), metadata={}
  ROOT %less = pred[]{:T(512)} compare(%i.1, %four), direction=LT
}

ENTRY """
    text = text.replace("ENTRY ", condition)
    counted = traffic.count(text)
    assert counted.hbm_bytes - traffic.count(HLO).hbm_bytes == LOOP // 3
    assert counted.longest_loop == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("ENTRY ", ""), "entry computation"),
        (('{"known_trip_count":{"n":"3"}}', "{}"), "loop whose length"),
        (("f32[1000]{0:T(1024)} negate", "f7[1000]{0} negate"), "'f7'"),
    ],
)
def test_what_cannot_be_counted_is_said(change, message):
    with pytest.raises(ValueError, match=message):
        traffic.count(HLO.replace(*change))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("f32[3,5]{1,0}", 60),
        ("bf16[3,5]{1,0:T(8,128)(2,1)}", 30),
        ("s4[3]{0}", 2),
        ("pred[]", 1),
    ],
)
def test_bytes_of_buffers(text, size):
    [buffer] = traffic._buffers(text)
    assert buffer.size == size


SENDS = """HloModule sends, is_scheduled=true

%fused (p: f32[800]) -> f32[100] {
  %p = f32[800]{0} parameter(0)
  %sum = f32[800]{0} all-reduce(%p), replica_groups={}, to_apply=%add
  ROOT %mine = f32[100]{0} slice(%sum), slice={[0:100]}
}

ENTRY %main (a: f32[800], b: bf16[100]) -> f32[800] {
  %a = f32[800]{0} parameter(0)
  %b = bf16[100]{0} parameter(1)
  %f = f32[100]{0} fusion(%a), kind=kCustom, calls=%fused
  %all = f32[800]{0} all-gather(%f), dimensions={0}
  %s = (f32[800]{0}, bf16[100]{0}) all-reduce-start(%all, %b), to_apply=%add
  %d = (f32[800]{0}, bf16[100]{0}) all-reduce-done(%s)
  ROOT %out = f32[800]{0} get-tuple-element(%d), index=0
}
"""


def test_what_goes_between_devices():
    """The operands count, once, whether fused or beside other work."""
    counted = traffic.count(SENDS)
    assert counted.collectives == {"all-reduce": 2, "all-gather": 1}
    assert counted.collective_bytes == 3200 + 400 + (3200 + 200)
    # The fusion, the gathering, the sum: what each reads and writes.
    assert counted.hbm_bytes == (3200 + 400) + (400 + 3200) + 2 * (3200 + 200)


def test_a_program_on_one_device_sends_nothing():
    counted = traffic.count(HLO)
    assert (counted.collectives, counted.collective_bytes) == ({}, 0)
