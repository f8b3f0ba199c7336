"""The tables of streams and losses are those of method and paper."""

from __future__ import annotations

from nnunetv2_crossmatch.methods.crossmatch import STREAMS, loss_table

ROWS = loss_table(0.3).rows


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
    assert all(order.index(row.teacher) < order.index(row.student) for row in ROWS)


def test_every_stream_but_the_teacher_learns():
    assert {row.student for row in ROWS} == STREAMS.keys() - {"wn"}


def test_each_assistant_labels_for_the_student_with_its_perturbation():
    pairs = {(row.teacher, row.student) for row in ROWS if row.part == "dkd"}
    assert pairs == {("ww", "sw"), ("ws", "ss")}
    assert all(STREAMS[teacher].perturbation == STREAMS[student].perturbation for teacher, student in pairs)
