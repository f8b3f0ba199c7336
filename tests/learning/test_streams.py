"""The tables of streams and losses are those of method and paper."""

from __future__ import annotations

from nnunetv2_crossmatch.learning.losses import loss_table
from nnunetv2_crossmatch.learning.streams import STREAMS


def test_streams_see_the_views_and_perturbations_of_the_paper():
    table = {name: (stream.view, stream.perturbation) for name, stream in STREAMS.items()}
    assert table == {
        "wn": ("weak", None),
        "ww": ("weak", "weak"),
        "ws": ("weak", "strong"),
        "sw": ("strong2", "weak"),
        "ss": ("strong2", "strong"),
        "s1": ("strong1", None),
        "s2": ("strong2", None),
    }


def test_teachers_stand_before_their_students():
    order = list(STREAMS)
    assert all(order.index(row.teacher) < order.index(row.student) for row in loss_table(0.3))


def test_every_stream_but_the_teacher_learns():
    assert {row.student for row in loss_table(0.3)} == STREAMS.keys() - {"wn"}


def test_assistants_teach_the_student_of_their_own_decoder():
    pairs = {(row.teacher, row.student) for row in loss_table(0.3) if row.part == "dkd"}
    assert pairs == {("ww", "sw"), ("ws", "ss")}
    assert all(STREAMS[teacher].perturbation == STREAMS[student].perturbation for teacher, student in pairs)
