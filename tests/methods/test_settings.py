"""Settings and the trainer names that spell them."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunetv2_crossmatch.errors import InputError
from nnunetv2_crossmatch.methods.crossmatch import CrossMatch
from nnunetv2_crossmatch.methods.crossmatch import CrossMatchSettings as Settings
from nnunetv2_crossmatch.methods.names import METHODS, settings_from_name
from nnunetv2_crossmatch.training import named


def values(setting) -> st.SearchStrategy:
    meta = setting.metadata
    if meta["choices"]:
        return st.sampled_from(meta["choices"])
    low, high = meta["low"], meta["high"]
    if meta["kind"] is int:
        return st.integers(low, high if high is not None else 10**9)
    return st.floats(low, high if high is not None else 1e6, allow_nan=False).map(abs)


def settings_of(method) -> st.SearchStrategy:
    optional = {setting.name: values(setting) for setting in fields(method.Settings)}
    return st.fixed_dictionaries({}, optional=optional).map(lambda changed: replace(method.Settings(), **changed))


some_settings = st.sampled_from(METHODS).flatmap(settings_of)


@given(some_settings)
def test_every_settings_object_round_trips_through_its_name(settings):
    assert settings_from_name(settings.trainer_name) == settings


@given(some_settings)
def test_names_are_identifiers_without_double_underscore(settings):
    name = settings.trainer_name
    assert name.isidentifier()
    assert "__" not in name


def test_plain_name_is_the_default():
    assert settings_from_name("nnUNetTrainerCrossMatch") == Settings()
    assert Settings().trainer_name == "nnUNetTrainerCrossMatch"


def test_tokens_of_the_readme():
    read = settings_from_name("nnUNetTrainerCrossMatch_2epochs_iters10_valiters3_eta0p2_tau0p95_dropalpha_seed7")
    expected = Settings(epochs=2, iterations=10, validation_iterations=3, eta=0.2, tau=0.95, dropout="alpha", seed=7)
    assert read == expected


@pytest.mark.parametrize("method", METHODS)
def test_every_default_is_a_value_that_its_token_may_have(method):
    """None where the data decide: a default that no token can spell would be an own name for the same run."""
    for setting in fields(method.Settings):
        meta, default = setting.metadata, setting.default
        if default is None:
            continue
        high = default if meta["high"] is None else meta["high"]
        allowed = default in meta["choices"] if meta["choices"] else meta["low"] <= default <= high
        assert allowed, setting.name


PUBLISHED = {
    "LA": Settings(
        epochs=36, tau=0.85, optimizer="adamw", learning_rate=0.001, batch=2, unlabeled_batch=2, warmup=0.0
    ),
    "ACDC": Settings(epochs=116, tau=0.95, optimizer="sgd", batch=12, unlabeled_batch=12, warmup=0.0),
}  # fmt: skip


def test_presets_are_the_published_settings():
    assert {name: settings_from_name(f"nnUNetTrainerCrossMatch_{name}") for name in CrossMatch.presets} == PUBLISHED


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_combine_with_tokens(preset):
    read = settings_from_name(f"nnUNetTrainerCrossMatch_{preset}_eta0p1_5epochs")
    assert read == replace(PUBLISHED[preset], eta=0.1, epochs=5)


def test_what_a_preset_leaves_open_is_the_papers():
    default = Settings()
    assert (default.eta, default.unsupervised, default.cutmix, default.temperature) == (0.3, 0.5, 0.5, 1)
    assert (default.weak_dropout, default.strong_dropout, default.dropout) == (0.25, 0.75, "channel")
    assert (default.iterations, default.criterion, default.students) == (250, "dice", 6)


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ("foo", "unknown"),
        ("eta", "unknown"),
        ("eta0.3", "unknown"),
        ("eta1p5", "must be from 0 to 1"),
        ("eta-1", "unknown"),
        ("epochs5", "unknown"),
        ("0epochs", "must be from 1"),
        ("dropbanana", "unknown"),
        ("iters10p5", "unknown"),
        ("", "unknown"),
        ("eta٣", "unknown"),
    ],
)
def test_a_wrong_token_is_one_line_that_lists_the_valid_ones(token, why):
    with pytest.raises(InputError) as raised:
        settings_from_name(f"nnUNetTrainerCrossMatch_eta0p3_{token}")
    message = str(raised.value)
    assert why in message
    assert "\n" not in message
    assert all(word in message for word in ("<n>epochs", "eta<x>", "channel|alpha|featurealpha", "LA (preset"))


def test_a_token_of_another_method_is_refused_with_the_methods_that_have_it():
    with pytest.raises(InputError, match=r"'eta0p3' is a token of CrossMatch only\. Fix: use the valid"):
        settings_from_name("nnUNetTrainerFixMatch_eta0p3")
    with pytest.raises(InputError, match="'featdrop0p5' is a token of UniMatch, MeanTeacher, UAMT, URPC only"):
        settings_from_name("nnUNetTrainerCrossMatch_featdrop0p5")


def test_a_trainer_that_is_none_of_ours_is_refused_with_the_names_of_ours():
    with pytest.raises(InputError, match=r"none of ours\. Fix: use nnUNetTrainerCrossMatch, nnUNetTrainerFixMatch"):
        settings_from_name("nnUNetTrainer_5epochs")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("nnUNetTrainerCrosMatch_5epochs", "nnUNetTrainerCrossMatch, nnUNetTrainerFilterMatch"),
        ("nnUNetTrainermcnet", "nnUNetTrainerMCNet, nnUNetTrainerMCNetPlus, nnUNetTrainerSSNet"),
        ("MeanTeacher", "nnUNetTrainerMeanTeacher"),
    ],
)
def test_a_mistyped_trainer_is_answered_with_the_nearest_names(name, nearest):
    with pytest.raises(
        InputError, match=rf"unknown trainer in trainer name {name}: none of ours\. Fix: use {nearest}$"
    ):
        settings_from_name(name)


def test_nnunets_search_for_a_mistyped_trainer_prints_the_nearest_names(capsys):
    with pytest.raises(AttributeError):
        named.nnUNetTrainerFixMach_5epochs  # noqa: B018
    with pytest.raises(AttributeError):
        named.nnUNetTrainerPrimus  # noqa: B018
    nearest = "nnUNetTrainerFixMatch, nnUNetTrainerUniMatch, nnUNetTrainerFilterMatch"
    expected = f"No trainer here is named nnUNetTrainerFixMach_5epochs; the nearest names are {nearest}\n"
    assert capsys.readouterr().err == expected


def test_the_canonical_name_does_not_move():
    """Results folders of protocols are named by it."""
    name = (
        "nnUNetTrainerCrossMatch_9epochs_iters8_valiters7_eta0p2_tau0p6_tauend0p7_weak0p1_strong0p5_dropalpha_"
        "levelsbottleneck_temp0p5_absentskip_classesall_criteriondicece_unsup1_warmup0p3_cutmix0p25_viewsauthors_"
        "gpuviews1_batch4_ubatch6_execsequential_students2_recompute1_optadamw_lr0p0001_seed3_verify0_diagnose1"
    )
    backwards = "_".join([name.split("_")[0], *name.split("_")[:0:-1]])
    assert settings_from_name(backwards).trainer_name == name


def test_a_token_given_twice_is_refused():
    with pytest.raises(InputError, match="given twice"):
        settings_from_name("nnUNetTrainerCrossMatch_eta0p3_eta0p4")


@given(st.text(max_size=30))
def test_any_text_gives_settings_or_a_clean_error(text):
    with suppress(InputError):
        assert isinstance(settings_from_name(f"nnUNetTrainerCrossMatch_{text}"), Settings)


def test_whole_numbers_are_those_whose_field_is_declared_so():
    """Neither two students and a half nor a seventh one would mean anything."""
    for setting in (one for method in METHODS for one in fields(method.Settings)):
        whole = setting.type.split(" | ")[0] == "int"
        assert (setting.metadata["kind"] is int) == whole, setting.name
    for token in ("students2p5", "students7"):
        with pytest.raises(InputError, match=token):
            settings_from_name(f"nnUNetTrainerCrossMatch_{token}")


BOUNDS = {
    (0, 1): "align certain cutmix diagnose ema eta geometry gpuviews joint keep labeledmix labeledonly largest "
    "mirrorteacher pretrain recompute softlabels tau tauend verify warmup",
    (0, 0.99): "featdrop strong weak",
    (0, 0.9): "filter",
    (0, None): "bank contrast correlation distance lr noise seed unsup",
    (0.01, None): "temp",
    (0.05, None): "temp",  # of the two MC-Nets
    (1, None): "batch epochs iters samples steepness ubatch valiters",
    (1, 6): "students",
    (2, None): "scales",
}
"""Smallest and largest value by token."""


def test_the_smallest_and_the_largest_value_of_every_number_are_these():
    every = {(one.metadata["token"], one.metadata["low"], one.metadata["high"])
             for method in METHODS for one in fields(method.Settings) if not one.metadata["choices"]}  # fmt: skip
    assert every == {(token, *bounds) for bounds, tokens in BOUNDS.items() for token in tokens.split()}


def test_every_default_is_of_its_settings_kind():
    for setting in (one for method in METHODS for one in fields(method.Settings)):
        kinds = (int, float) if setting.metadata["kind"] is float else setting.metadata["kind"]
        assert setting.default is None or isinstance(setting.default, kinds), setting.name


def test_every_setting_states_its_source_and_meaning():
    source = re.compile(r"paper|\bours\b|nnU-Net|released code|\(.*\d{4}")
    for setting in (one for method in METHODS for one in fields(method.Settings)):
        assert source.search(setting.metadata["source"]), setting.name
        assert setting.metadata["meaning"], setting.name


@pytest.mark.parametrize(("classes", "tau"), [(1, 0.85), (3, 0.5)])
def test_tau_follows_from_the_number_of_classes(classes, tau):
    assert Settings().tau_at(0.3, classes) == tau
    assert Settings(tau=0.6).tau_at(0.3, classes) == 0.6


def test_threshold_is_constant_or_rises_linearly():
    assert Settings(tau=0.5, tau_end=0.9).tau_at(0.5, 1) == pytest.approx(0.7)
    assert Settings(tau_end=0.95).tau_at(0.5, 1) == pytest.approx(0.9)


def test_unsupervised_weight_rises_linearly_and_stays():
    settings = Settings(warmup=0.5, unsupervised=0.8)
    assert [settings.unsupervised_at(x) for x in (0, 0.25, 0.5, 0.99)] == pytest.approx([0, 0.4, 0.8, 0.8])
    assert Settings(warmup=0.0, unsupervised=0.8).unsupervised_at(0) == 0.8
