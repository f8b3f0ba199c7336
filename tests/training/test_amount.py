"""Amounts of pseudo-labels by hand, shares of whole labeled volumes, and the line that tells of an unusual one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import blob_case
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from trainers import started

from nnunetv2_crossmatch.data.class_shares import class_shares
from nnunetv2_crossmatch.learning.pseudo_labels import PseudoLabel
from nnunetv2_crossmatch.training.amount import amount_warnings, amounts
from nnunetv2_crossmatch.training.durable import DurableTrainer

NAN = float("nan")


def cases(*volumes: list) -> SimpleNamespace:
    """Volumes of one row as nnU-Net's dataset gives them."""
    loaded = {f"case{i}": np.array(volume).reshape(1, 1, 1, -1) for i, volume in enumerate(volumes)}
    return SimpleNamespace(identifiers=list(loaded), load_case=lambda name: (None, loaded[name], None, {}))


def test_shares_are_over_all_voxels_of_whole_volumes_in_the_order_of_the_outputs():
    labels = LabelManager({"background": 0, "late": 2, "early": 1}, None)
    shares = class_shares(cases([0, 0, 1, 1, 2, -1], [0, 0, 0, 0]), labels)
    assert list(shares.items()) == [("early", 0.2), ("late", 0.1)]


def test_regions_overlap_and_keep_their_order():
    labels = LabelManager({"background": 0, "core": 2, "whole": [1, 2]}, [1, 2])
    assert class_shares(cases([0, 1, 2, 2]), labels) == {"core": 0.5, "whole": 0.75}


def test_partly_annotated_volumes_have_no_shares():
    labels = LabelManager({"background": 0, "a": 1, "ignore": 2}, None)
    assert class_shares(cases([0, 1, 2]), labels) == {}


def test_of_many_volumes_some_are_read_evenly_spread():
    many = cases(*[[1, 0]] * 60)
    read, load = [], many.load_case
    many.load_case = lambda name: (read.append(name), load(name))[1]
    class_shares(many, LabelManager({"background": 0, "a": 1}, None))
    assert read == [f"case{i}" for i in range(0, 60, 3)]


@pytest.mark.parametrize("regions", [False, True])
def test_an_amount_is_the_share_among_pseudo_labels_over_that_of_labeled_volumes(regions):
    classes = torch.tensor([[0, 1, 1, 2]])
    labels = torch.stack([classes == 1, classes == 2], dim=1) if regions else classes
    label = PseudoLabel(labels, torch.ones(labels.shape), torch.zeros(labels.shape))
    found = amounts(label, 2 if regions else 3, {"a": 0.25, "b": 0.5})
    assert {name: one.item() for name, one in found.items()} == {"amount_a": 2.0, "amount_b": 0.5}
    assert amounts(label, 2 if regions else 3, {"a": 0.0, "b": 0.5}).keys() == {"amount_b"}


def test_a_class_that_leaves_the_usual_range_is_told_once():
    curves = {
        "unsup_weight": [0.99 * 0.5, 0.5, 0.5, 0.5, 0.5],
        "amount_liver": [3.0, 3.0, 2.5, 1.0, 0.4],
        "amount_spleen": [NAN, NAN, 1.9, 0.6, NAN],
        "amount_kidney": [0.5, 0.5, 2.0, 2.0, 0.5],
    }
    told = [amount_warnings(curves, epoch, 0.5) for epoch in range(5)]
    assert [len(lines) for lines in told] == [0, 1, 0, 0, 1]
    assert told[1][0].startswith("The pseudo-labels hold 3.00 times as much of liver as the labeled volumes.")
    assert "labeledmix0p5" in told[4][0]


def test_the_trainer_logs_the_amount_of_each_class(prepared_copy):
    """Over the share in whole labeled volumes, not in what the loader shows the network."""
    trainer = started(prepared_copy, "nnUNetTrainerFixMatch_1epochs_iters2_valiters1_seed1")
    of_volumes = [blob_case(seed)[1].mean() for seed in range(4)]
    assert trainer.class_shares == {"blob": pytest.approx(np.mean(of_volumes), rel=1e-6)}
    report = trainer.train_step(next(trainer.dataloader_train))
    trainer.on_train_epoch_end([report])
    assert trainer.curves["amount_blob"] == [pytest.approx(float(report["amount_blob"]))]


@pytest.mark.parametrize("shares", [{}, {"blob": 0.1}])
def test_a_figure_is_drawn_if_there_is_a_curve(prepared_copy, monkeypatch, shares):
    """A joint loss has none of its own, and partly annotated volumes give no amounts."""
    trainer = started(prepared_copy, "nnUNetTrainerFixMatch_1epochs_iters2_valiters1_seed1_joint1")
    trainer.class_shares = shares
    trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train))])
    monkeypatch.setattr(DurableTrainer, "on_epoch_end", lambda _: None)
    trainer.on_epoch_end()
    assert (trainer.folder / "progress_crossmatch.png").is_file() == bool(shares)
