"""The mistakes of ``mutations.py`` by package, and the tests that must notice each of them.

Limit: a list; ``tests/benchmarks/test_mutations.py`` compares it with the code.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """One mistake.

    Attributes:
        file: module below the package, as it is imported.
        old: text that stands in it once.
        new: text of the mistake.
        tests: test file below ``tests``.
        select: pytest's ``-k`` expression for those tests in the file that are meant to notice it.
    """

    file: str
    old: str
    new: str
    tests: str
    select: str = ""


CHECKPOINTS = "training/test_checkpoints.py"
CONSISTENCY = "methods/test_consistency.py"
CONVERSION_PARTS = "conversion/test_conversion_parts.py"
CUTMIX = "learning/test_cutmix.py"
FAULTS = "training/test_faults_training.py"
FILTERMATCH = "methods/test_filtermatch.py"
FIXMATCH = "methods/test_fixmatch_unimatch.py"
LOSSES = "learning/test_losses.py"
MATH = "learning/test_step.py"
METRICS = "evaluation/test_metrics.py"
MODULES = "training/test_methods_with_modules.py"
MEMORY, LACK = "learning/test_memory.py", "training/test_lack_of_memory.py"
PROCESSES = "training/test_distributed.py"
REPORT_PARTS = "report/test_report_parts.py"
SEGMENTATIONS = "evaluation/test_segmentations.py"
SETTINGS = "methods/test_settings.py"
STEP = "training/test_train_step.py"
TRAINER = "training/test_trainer.py"
UNLABELED = "data/test_faults_unlabeled.py"
VIEWS = "data/test_views.py"

LEARNING = {
    "CutMix box from the other neighbour": Mutation(
        "learning/cutmix.py", "tensor[(sample + 1) % len(tensor)]", "tensor[sample - 1]", CUTMIX, "inside_the_box"
    ),
    "CutMix boxes larger than published": Mutation(
        "learning/cutmix.py", "VOLUME_SHARE = (0.02, 0.4)", "VOLUME_SHARE = (0.02, 0.5)", CUTMIX, "2000_boxes"
    ),
    "CutMix boxes of less different volumes": Mutation(
        "learning/cutmix.py", "VOLUME_SHARE = (0.02, 0.4)", "VOLUME_SHARE = (0.05, 0.37)", CUTMIX, "2000_boxes"
    ),
    "CutMix boxes longer than published": Mutation(
        "learning/cutmix.py", "ASPECT_RATIO = (0.3, 1 / 0.3)", "ASPECT_RATIO = (0.2, 1 / 0.2)", CUTMIX, "2000_boxes"
    ),
    "CutMix boxes of less different shapes": Mutation(
        "learning/cutmix.py", "ASPECT_RATIO = (0.3, 1 / 0.3)", "ASPECT_RATIO = (0.6, 1 / 0.6)", CUTMIX, "2000_boxes"
    ),
    "gradients of processes summed instead of averaged": Mutation(
        "learning/exchange.py", "    flat /= dist.get_world_size()\n", "", PROCESSES, "train_like_one"
    ),
    "logged loss_sup keeps its graph, stacked": Mutation(
        "learning/execution.py",
        "    step.backward(supervised + step.weight * unsupervised)\n    return supervised.detach()",
        "    step.backward(supervised + step.weight * unsupervised)\n    return supervised",
        STEP,
        "2d-stacked-",
    ),
    "logged loss_sup keeps its graph, sequential": Mutation(
        "learning/execution.py",
        "        _run_view(step, view, drawn, loss)\n    return supervised.detach()",
        "        _run_view(step, view, drawn, loss)\n    return supervised",
        STEP,
        "2d-sequential-",
    ),
    "unsupervised weight forgotten, stacked": Mutation(
        "learning/execution.py", "step.weight * unsupervised", "unsupervised", MATH, "2-False-2-stacked"
    ),
    "unsupervised weight forgotten, sequential": Mutation(
        "learning/execution.py", "step.weight * loss.of_student", "loss.of_student", MATH, "2-False-2-sequential"
    ),
    "teacher with gradient, sequential": Mutation(
        "learning/execution.py", "torch.set_grad_enabled(learns)", "torch.enable_grad()", MATH, "teacher_keeps_no_graph"
    ),
    "feature perturbation forgotten, sequential": Mutation(
        "learning/execution.py", "drawn=drawn.get(name))[0]", "drawn=None)[0]", MATH, "2-False-2-sequential"
    ),
    "encoder of one view not trained": Mutation(
        "learning/execution.py",
        "    if learning:\n",
        '    if learning and view != "strong1":\n',
        MATH,
        "2-False-2-sequential",
    ),
    "images with the boxes of the other strong view": Mutation(
        "learning/execution.py",
        "paste(images[view], boxes[view], ",
        'paste(images[view], boxes["strong1"], ',
        MATH,
        "2-False-2-stacked",
    ),
    "threshold ignored": Mutation(
        "learning/losses.py",
        "p = probability[:, channel] * counts",
        "p = probability[:, channel] * 1",
        LOSSES,
        "invalid_voxels",
    ),
    "threshold ignored in the gradient": Mutation("learning/losses.py", ".mul_(counts)", "", LOSSES, "masked_sums"),
    "probabilities not squared": Mutation(
        "learning/losses.py", "p.square_().sum()", "p.sum()", LOSSES, "dice_of_two_voxels"
    ),
    "temperature the wrong way": Mutation(
        "learning/losses.py", ") / self.temperature", ") * self.temperature", LOSSES, "temperature"
    ),
    "absent classes always counted": Mutation(
        "learning/losses.py", 'if self.absent == "count":', "if True:", LOSSES, "skipped_on_demand"
    ),
    "cross-entropy not summed over processes": Mutation(
        "learning/losses.py",
        "total = self._total(torch.stack([(per_voxel * target.valid).sum(), target.valid.sum().to(per_voxel.dtype)]))",
        "total = torch.stack([(per_voxel * target.valid).sum(), target.valid.sum().to(per_voxel.dtype)])",
        PROCESSES,
        "train_like_one",
    ),
    "Dice not summed over processes": Mutation(
        "learning/losses.py",
        "overlap, squares, volume = self._total(sums)",
        "overlap, squares, volume = sums",
        PROCESSES,
        "train_like_one",
    ),
    "teacher with gradient, stacked": Mutation(
        "learning/network.py", "with torch.no_grad():", "with torch.enable_grad():", MATH, "teacher_gets_no_gradient"
    ),
    "feature perturbation forgotten, stacked": Mutation(
        "learning/network.py",
        "return perturbed(list(features[views[name]]), drawn.get(name))",
        "return list(features[views[name]])",
        MATH,
        "2-False-2-stacked",
    ),
    "lower heads on all rows": Mutation(
        "learning/network.py", "head(x[:labeled_rows])", "head(x)", "learning/test_network.py", "lower_heads"
    ),
    "supervised loss of a strong view": Mutation(
        "learning/network.py",
        "rows = [features[LABELED], *map(stream_features, students)]",
        'rows = [features["strong1"], *map(stream_features, students)]',
        STEP,
        "2d-stacked-",
    ),
    "kept channels not scaled": Mutation(
        "learning/perturbation.py",
        "Perturbation(kept.float() / keep_rate, None)",
        "Perturbation(kept.float(), None)",
        "learning/test_perturbation.py",
        "channel_dropout",
    ),
    "samples share their perturbation": Mutation(
        "learning/perturbation.py",
        "kept = torch.rand(size, generator=generator, device=device) >= self.rate",
        "kept = torch.rand(size, generator=generator, device=device)[:1].expand(size) >= self.rate",
        STEP,
        "views_streams",
    ),
    "pseudo-labels with gradient": Mutation(
        "learning/pseudo_labels.py",
        "distribution(logits.detach(), regions)",
        "distribution(logits, regions)",
        "learning/test_pseudo_labels.py",
        "constant",
    ),
    "threshold is strict": Mutation(
        "learning/pseudo_labels.py",
        "confidence, confidence >= tau)",
        "confidence, confidence > tau)",
        "learning/test_pseudo_labels.py",
        "equal_to_tau",
    ),
    "images turned, labels not": Mutation(
        "learning/unsupervised.py",
        "label.oriented(self.orientations[view]) if view in self.orientations else label",
        "label",
        STEP,
        "seen_in_the_step-geometry",
    ),
    "boxes of labeled images with the neighbour's label": Mutation(
        "learning/pseudo_labels.py",
        "paste(field, boxes, others.get(name), donors)",
        "paste(field, boxes)",
        CUTMIX,
        "labeled_sample",
    ),
    "flip of the teacher's input not undone": Mutation(
        "learning/moving_average.py",
        "full_resolution(network(images.flip(flip))).flip(flip)",
        "full_resolution(network(images.flip(flip)))",
        "learning/test_moving_average.py",
        "mean_over_flips",
    ),
    "moving average stands still": Mutation(
        "methods/table.py",
        "update_average(self.average, step.network, self.settings.ema)",
        "pass",
        STEP,
        "seen_in_the_step-ema",
    ),
    "ignored voxels of labeled images count in their boxes": Mutation(
        "learning/pseudo_labels.py",
        "valid = labels < channels",
        "valid = labels <= channels",
        "learning/test_pseudo_labels.py",
        "not_ignored",
    ),
    "threshold of a class moves the wrong way": Mutation(
        "learning/labeling.py", "counted / found.clamp(min=1) - self.keep", "self.keep", STEP, "step-keep"
    ),
    "share counted over all classes": Mutation(
        "learning/labeling.py", "counted / found.clamp(min=1)", "counted / found.sum()", STEP, "step-keep"
    ),
    "a class of too many voxels is favoured": Mutation(
        "learning/labeling.py", "self.shift.sub_(", "self.shift.add_(", STEP, "step-align"
    ),
    "labels of other processes are not counted": Mutation(
        "learning/labeling.py",
        "sum_over_processes(counts.to(label.confidence.dtype)).T",
        "counts.to(label.confidence.dtype).T",
        "training/test_distributed.py",
        "thresholds",
    ),
    "soft labels are not sharpened": Mutation(
        "learning/labeling.py",
        "label._replace(soft=sharpened(probability, self.regions))",
        "label._replace(soft=probability)",
        STEP,
        "step-softlabels",
    ),
    "unlabeled images from the first step on": Mutation(
        "data/loader.py", "index >= self.first_unlabeled", "index >= 0", STEP, "first_part"
    ),
    "one field of the pseudo-labels without CutMix": Mutation(
        "learning/pseudo_labels.py",
        "paste(field, boxes, others.get(name), donors)",
        "field if name == 'valid' else paste(field, boxes, others.get(name), donors)",
        CUTMIX,
        "follow_their_image",
    ),
    "loss not scaled": Mutation("learning/step.py", "self.scale(loss).backward()", "loss.backward()", STEP, "scaler"),
    "ignore label forgotten": Mutation(
        "learning/step.py",
        "return self.supervised_loss(output, self.target)",
        "return self.supervised_loss(output, [t.clamp(max=1) for t in self.target])",
        STEP,
        "ignored_voxels",
    ),
    "draws do not follow the step": Mutation(
        "learning/step.py",
        "(self.seed, self.rank, PROCESS_DRAWS, self.index)",
        "(self.seed, self.rank, PROCESS_DRAWS, 0)",
        STEP,
        "draws_follow",
    ),
    "draws do not follow the seed": Mutation(
        "learning/step.py",
        "(self.seed, self.rank, PROCESS_DRAWS, self.index)",
        "(0, self.rank, PROCESS_DRAWS, self.index)",
        STEP,
        "draws_follow",
    ),
    "all processes draw the same": Mutation(
        "learning/step.py",
        "(self.seed, self.rank, PROCESS_DRAWS, self.index)",
        "(self.seed, 0, PROCESS_DRAWS, self.index)",
        PROCESSES,
        "draw_different",
    ),
    "perturbations from the global generator": Mutation(
        "learning/step.py",
        "torch.Generator(device).manual_seed(int(self._entropy.generate_state(1)[0]))",
        "torch.default_generator",
        STEP,
        "draws_follow",
    ),
    "background counted among the foreground classes": Mutation(
        "learning/step.py",
        "return self.channels if self.regions else self.channels - 1",
        "return self.channels",
        STEP,
        "2d-stacked-",
    ),
    "one region too few": Mutation(
        "learning/step.py",
        "return self.channels if self.regions else self.channels - 1",
        "return self.channels - 1",
        STEP,
        "regions",
    ),
    "drawn students keep their weights": Mutation(
        "learning/streams.py",
        "scale = len(self._listed_students) / len(students)",
        "scale = 1",
        MATH,
        "mean_gradient_over_all",
    ),
    "labels without CutMix": Mutation(
        "learning/unsupervised.py",
        "label.cutmixed(self.boxes[view], self.references, self.donors.get(view, ()))",
        "label",
        MATH,
        "2-False-2-stacked",
    ),
    "labels with the boxes of the other strong view": Mutation(
        "learning/unsupervised.py",
        "label.cutmixed(self.boxes[view], ",
        'label.cutmixed(self.boxes["strong1"], ',
        MATH,
        "2-False-2-stacked",
    ),
    "logged parts keep their graph": Mutation(
        "learning/unsupervised.py", "+ loss.detach()", "+ loss", STEP, "2d-stacked-"
    ),
    "logged sum keeps its graph": Mutation(
        "learning/unsupervised.py", "+ total.detach()", "+ total", STEP, "2d-stacked-"
    ),
    "confident share is the mean confidence": Mutation(
        "learning/unsupervised.py",
        "self.teacher_labels.valid.float().mean()",
        "self.teacher_labels.confidence.mean()",
        STEP,
        "2d-stacked-",
    ),
    "agreement counts what differs": Mutation(
        "learning/unsupervised.py",
        "(labels == first.labels).float()",
        "(labels != first.labels).float()",
        STEP,
        "2d-stacked-",
    ),
    "agreement counts the first teacher too": Mutation(
        "learning/unsupervised.py",
        "for label in self.labels.values() if label is not first]",
        "for label in self.labels.values()]",
        STEP,
        "2d-stacked-",
    ),
    "logged loss without the weight": Mutation(
        "learning/unsupervised.py",
        '"loss": supervised + weight * self.total',
        '"loss": supervised + self.total',
        STEP,
        "2d-stacked-",
    ),
}

METHODS = {
    "sign of one loss row": Mutation(
        "methods/crossmatch.py",
        'LossRow("dkd", "sw", "ww", 1 / 2',
        'LossRow("dkd", "sw", "ww", -1 / 2',
        MATH,
        "2-False-2-stacked",
    ),
    "student with the other perturbation's assistant": Mutation(
        "methods/crossmatch.py", '"sw", "ww", 1 / 2', '"sw", "ws", 1 / 2', MATH, "2-False-2-stacked"
    ),
    "eta and 1 - eta exchanged": Mutation(
        "methods/crossmatch.py", "1 / 4, 1 - eta)", "1 / 4, eta)", MATH, "2-False-2-stacked"
    ),
    "p_sw perturbed as p_ss": Mutation(
        "methods/crossmatch.py",
        '"sw": Stream("strong2", "weak")',
        '"sw": Stream("strong2", "strong")',
        "methods/test_crossmatch.py",
    ),
    "setting without effect: kind of dropout": Mutation(
        "methods/crossmatch.py",
        "rate, settings.dropout, settings.levels)",
        'rate, "channel", settings.levels)',
        STEP,
        "dropalpha",
    ),
    "setting without effect: perturbed levels": Mutation(
        "methods/crossmatch.py", "rate, settings.dropout, settings.levels)", "rate, settings.dropout)", STEP, "levelsb"
    ),
    "setting without effect: weak dropout": Mutation(
        "methods/crossmatch.py", '"weak": settings.weak_dropout', '"weak": 0.25', STEP, "weak0p5"
    ),
    "setting without effect: strong dropout": Mutation(
        "methods/crossmatch.py", '"strong": settings.strong_dropout', '"strong": 0.75', STEP, "strong0p4"
    ),
    "setting without effect: eta": Mutation(
        "methods/crossmatch.py", "loss_table(self.settings.eta)", "loss_table(0.3)", STEP, "eta0p8"
    ),
    "setting without effect: students": Mutation(
        "methods/crossmatch.py", "drawn(self.settings.students, rng)", "drawn(6, rng)", STEP, "students"
    ),
    "preset LA has no batch": Mutation(
        "methods/crossmatch.py", '            "batch": 2,\n', "", SETTINGS, "presets_are"
    ),
    "preset LA has no unlabeled batch": Mutation(
        "methods/crossmatch.py", '            "unlabeled_batch": 2,\n', "", SETTINGS, "presets_are"
    ),
    "preset LA has no learning rate": Mutation(
        "methods/crossmatch.py", '            "learning_rate": 0.001,\n', "", SETTINGS, "presets_are"
    ),
    "preset LA warms up": Mutation(
        "methods/crossmatch.py",
        '            "unlabeled_batch": 2,\n            "warmup": 0.0,\n',
        '            "unlabeled_batch": 2,\n',
        SETTINGS,
        "presets_are",
    ),
    "preset ACDC has no batches": Mutation(
        "methods/crossmatch.py", '"batch": 12, "unlabeled_batch": 12, ', "", SETTINGS, "presets_are"
    ),
    "preset ACDC is shorter": Mutation(
        "methods/crossmatch.py", '"ACDC": {"epochs": 116', '"ACDC": {"epochs": 100', SETTINGS, "presets_are"
    ),
    "CutMix in labels but not in images": Mutation(
        "methods/table.py",
        "step.images = with_boxes(with_orientations(",
        "with_boxes(with_orientations(",
        STEP,
        "2d-stacked-_cutmix1",
    ),
    "both strong views with the same boxes": Mutation(
        "methods/table.py",
        "boxes = {view: draw_boxes(step.rng, rows, patch_size, self.settings.cutmix) for view in self.strong_views}",
        "boxes = dict.fromkeys(strong, draw_boxes(step.rng, rows, patch_size, self.settings.cutmix))",
        STEP,
        "views_streams",
    ),
    "weak perturbation not drawn": Mutation(
        "methods/table.py",
        "if (kind := table.streams[name].perturbation) is not None",
        'if (kind := table.streams[name].perturbation) not in (None, "weak")',
        STEP,
        "views_streams",
    ),
    "trial of memory counts twice": Mutation(
        "methods/table.py",
        "trial_loss.labels = dict(loss.labels)",
        "trial_loss = loss",
        STEP,
        "2d-auto-",
    ),
    "memory judged by each process": Mutation(
        "methods/table.py",
        "stacked = not any_process(not fits, device)",
        "stacked = fits",
        PROCESSES,
        "only_if_the_memory",
    ),
    "lack of memory known by its type alone": Mutation(
        "learning/memory.py", "any(words in str(each).lower() for words in LACK_OF_MEMORY)", "False", MEMORY, "known"
    ),
    "gradients of a failed step kept": Mutation(
        "methods/table.py", "            free_memory(step.network)\n", "", LACK, "later_step"
    ),
    "labels of a failed step kept": Mutation(
        "methods/table.py", "            loss.begin_again(labels)\n", "", LACK, "later_step"
    ),
    "execution chosen anew when continued": Mutation(
        "training/trainer.py",
        "self.method.decide_as(checkpoint.get(METHOD_DECISIONS, {}))",
        "self.method.decide_as({})",
        LACK,
        "stays_when_the_run",
    ),
    "memory tried with the students that were drawn": Mutation(
        "methods/table.py", "table=self.table_of_trial(loss.table)", "table=loss.table", LACK, "dearest_set"
    ),
    "two batches ready whatever their size": Mutation(
        "data/loader.py", " <= READY_BYTES else 1", " <= READY_BYTES else 2", "data/test_loader.py", "bounded_in_bytes"
    ),
    "threshold of the first step in all steps": Mutation(
        "methods/table.py", "self.settings.tau_at(step.progress,", "self.settings.tau_at(0,", STEP, "tauend"
    ),
    "regions taken for classes": Mutation(
        "methods/table.py",
        "            task.regions,\n            dice_classes",
        "            False,\n            dice_classes",
        STEP,
        "regions",
    ),
    "setting without effect: temperature": Mutation(
        "methods/table.py", "            settings.temperature,\n", "            1.0,\n", STEP, "temp0p5"
    ),
    "setting without effect: execution": Mutation(
        "methods/table.py",
        '"sequential": False}.get(settings.execution)',
        '"sequential": True}.get(settings.execution)',
        STEP,
        "encoder_runs",
    ),
    "setting without effect: classes": Mutation(
        "methods/table.py", "dice_classes(settings.classes,", 'dice_classes("auto",', STEP, "classesall"
    ),
    "setting without effect: absent classes": Mutation(
        "methods/table.py", "            settings.absent,\n", '            "count",\n', STEP, "absentskip"
    ),
    "setting without effect: criterion": Mutation(
        "methods/table.py", 'settings.criterion == "dicece"', "False", STEP, "criteriondicece and every_setting"
    ),
    "setting without effect: CutMix": Mutation(
        "methods/table.py", "patch_size, self.settings.cutmix)", "patch_size, 0.5)", STEP, "cutmix0"
    ),
    "token of another method ignored": Mutation(
        "methods/names.py",
        "    for token in tokens:\n",
        "    for token in (t for t in tokens if _is_token_of(method, t)):\n",
        SETTINGS,
        "token_of_another",
    ),
    "student of FixMatch on the weak view": Mutation(
        "methods/fixmatch.py", '"s1": Stream("strong1")', '"s1": Stream(WEAK)', FIXMATCH, "slow_statement and FixMatch"
    ),
    "FixMatch makes a view that no stream needs": Mutation(
        "methods/fixmatch.py",
        'unlabeled_views = (WEAK, "strong1")',
        'unlabeled_views = (WEAK, "strong1", "strong2")',
        FIXMATCH,
        "only_the_views",
    ),
    "feature perturbation of UniMatch missing": Mutation(
        "methods/unimatch.py", 'Stream(WEAK, "feature")', "Stream(WEAK)", FIXMATCH, "slow_statement and UniMatch"
    ),
    "one view of UniMatch weighs as much as both": Mutation(
        "methods/unimatch.py",
        'LossRow("ip", "s2", "w", 1 / 4)',
        'LossRow("ip", "s2", "w", 1 / 2)',
        FIXMATCH,
        "slow_statement and UniMatch",
    ),
}

DATA = {
    "second strong view made from the first": Mutation(
        "data/views.py",
        "self._strong_view(weak, changed)",
        "self._strong_view(changed[-1] if changed else weak, changed)",
        VIEWS,
        "made_of_the_weak_one",
    ),
    "authors' recipe: jitter rarer": Mutation(
        "data/views.py", "RandomTransform(jitter, 0.8)", "RandomTransform(jitter, 0.5)", VIEWS, "in_2d"
    ),
    "authors' recipe: blur narrower": Mutation(
        "data/views.py", "blur_sigma=(0.1, 2.0)", "blur_sigma=(0.5, 1.0)", VIEWS, "in_2d"
    ),
    "authors' recipe: contrast weaker": Mutation(
        "data/views.py",
        "ContrastTransform(BGContrast((0.5, 1.5))",
        "ContrastTransform(BGContrast((0.75, 1.25))",
        VIEWS,
        "in_2d",
    ),
    "authors' recipe: gamma of other range": Mutation(
        "data/views.py", "BGContrast((0.7, 1.5))", "BGContrast((0.5, 1.5))", VIEWS, "in_3d"
    ),
    "authors' recipe: bias field of one sign": Mutation(
        "data/views.py", "uniform_(-1.0, 1.0)", "uniform_(0.0, 1.0)", VIEWS, "bias_field"
    ),
    "authors' recipe: bias field wider": Mutation(
        "data/views.py",
        "shape[axis] * (0.5 + torch.rand(1).item())",
        "shape[axis] * (1.5 + torch.rand(1).item())",
        VIEWS,
        "bias_field",
    ),
    "changed raw file of equal size not noticed": Mutation(
        "data/manifest.py",
        "return any(updated_file_info(file, known).crc32 != known.crc32 for file, known in pairs)",
        "return False",
        UNLABELED,
        "25_a_raw_image",
    ),
    "modification times of raw files ignored": Mutation(
        "data/manifest.py",
        "return known if known == now else file_info(file)",
        "known.size == status.st_size",
        UNLABELED,
        "25_a_raw_image",
    ),
    "changed raw images not named": Mutation(
        "data/preprocessing.py", ', "changed": changed}', "}", UNLABELED, "25_a_raw_image"
    ),
    "not in the hash of the plans: reader": Mutation(
        "data/unlabeled_folder.py",
        '        "reader": plans_manager.plans["image_reader_writer"],\n',
        "",
        UNLABELED,
        "21_the_error_for_changed",
    ),
    "not in the hash of the plans: order of axes": Mutation(
        "data/unlabeled_folder.py",
        '        "transpose": plans_manager.transpose_forward,\n',
        "",
        UNLABELED,
        "21_the_error_for_changed",
    ),
    "not in the hash of the plans: intensities": Mutation(
        "data/unlabeled_folder.py",
        '        "intensities": plans_manager.foreground_intensity_properties_per_channel,\n',
        "",
        UNLABELED,
        "21_the_error_for_changed",
    ),
    "not in the hash of the plans: normalization": Mutation(
        "data/unlabeled_folder.py",
        '"data_identifier inherits_from',
        '"data_identifier normalization_schemes inherits_from',
        UNLABELED,
        "21_the_error_for_changed",
    ),
    "not in the hash of the plans: mask of the normalization": Mutation(
        "data/unlabeled_folder.py",
        '"data_identifier inherits_from',
        '"data_identifier use_mask_for_norm inherits_from',
        UNLABELED,
        "21_the_error_for_changed",
    ),
    "not in the hash of the plans: resampling": Mutation(
        "data/unlabeled_folder.py",
        '"data_identifier inherits_from',
        '"data_identifier resampling_fn_data_kwargs inherits_from',
        UNLABELED,
        "21_the_error_for_changed",
    ),
}

TRAINING = {
    "warm-up ignored": Mutation(
        "training/trainer.py",
        "weight=self.settings.unsupervised_at(progress)",
        "weight=self.settings.unsupervised",
        STEP,
        "warm_up_says",
    ),
    "steps are not counted": Mutation(
        "training/trainer.py",
        "        self.steps_done += 1\n        return self.step_done(values",
        "        return self.step_done(values",
        STEP,
        "draws_follow",
    ),
    "progress within an epoch forgotten": Mutation(
        "training/trainer.py",
        "progress = self.steps_done / (self.num_epochs * self.settings.iterations)",
        "progress = self.current_epoch / self.num_epochs",
        STEP,
        "tauend",
    ),
    "norm of the gradient not counted": Mutation(
        "training/trainer.py",
        "self._facts_of_labels(batch, step), gradient_norm)",
        "self._facts_of_labels(batch, step))",
        FAULTS,
        "31_a_loss",
    ),
    "gradients clipped at norm 1": Mutation(
        "training/trainer.py", "GRADIENT_NORM = 12 ", "GRADIENT_NORM = 1 ", STEP, "of_norm_24"
    ),
    "gradients clipped at norm 20": Mutation(
        "training/trainer.py", "GRADIENT_NORM = 12 ", "GRADIENT_NORM = 20 ", STEP, "of_norm_24"
    ),
    "gradient clipped while it is scaled": Mutation(
        "training/trainer.py",
        "        if scaler is not None:\n            scaler.unscale_(optimizer)\n",
        "",
        STEP,
        "scaler",
    ),
    "gradient scaler not updated": Mutation(
        "training/trainer.py", "            self.grad_scaler.update()\n", "            pass\n", STEP, "scaler"
    ),
    "gradients of the last step stay": Mutation(
        "training/trainer.py",
        "            optimizer.zero_grad()\n",
        "            pass\n",
        STEP,
        "2d-stacked-",
    ),
    "setting without effect: learning rate": Mutation(
        "training/trainer.py",
        "of_optimizer if settings.learning_rate is None else settings.learning_rate",
        "of_optimizer",
        STEP,
        "lr0p05",
    ),
    "learning rate 0 taken for none": Mutation(
        "training/trainer.py",
        "of_optimizer if settings.learning_rate is None else settings.learning_rate",
        "settings.learning_rate or of_optimizer",
        TRAINER,
        "rate_of_zero",
    ),
    "learning rate of SGD for AdamW": Mutation(
        "training/trainer.py",
        '0.001 if settings.optimizer == "adamw" else self.initial_lr',
        "self.initial_lr",
        STEP,
        "optadamw",
    ),
    "setting without effect: optimizer": Mutation(
        "training/trainer.py", 'if self.settings.optimizer == "sgd":', "if True:", STEP, "optadamw"
    ),
    "AdamW without schedule": Mutation(
        "training/trainer.py",
        "PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)",
        "PolyLRScheduler(optimizer, self.initial_lr, 10**9)",
        STEP,
        "optadamw",
    ),
    "setting without effect: recompute": Mutation(
        "training/trainer.py", "recompute=bool(cls.settings.recompute)", "recompute=False", STEP, "encoder_runs"
    ),
    "every process with its own seed": Mutation(
        "training/trainer.py",
        "from_first_process(drawn if settings.seed is None else settings.seed)",
        "drawn if settings.seed is None else settings.seed",
        PROCESSES,
        "first_process_s_everywhere",
    ),
    "gradients of processes not averaged": Mutation(
        "training/trainer.py",
        "            self._average_gradients()\n",
        "            pass\n",
        PROCESSES,
        "train_like_one",
    ),
    "curves show the last step": Mutation(
        "training/trainer.py",
        "for step in steps if name in step], name)",
        "for step in steps[-1:] if name in step], name)",
        TRAINER,
        "epoch_logs",
    ),
    "moving average updated although the optimizer skipped": Mutation(
        "training/trainer.py",
        "        if self.main_stepped:\n            self.method.after_step(step)\n",
        "        self.method.after_step(step)\n",
        MODULES,
        "scaler_skips",
    ),
    "moving average does not start at the network's weights": Mutation(
        "training/trainer.py",
        "if step.index == self.settings.first_unsupervised:",
        "if step.index < 0:",
        MODULES,
        "average_starts",
    ),
    "state of the method not saved": Mutation(
        "training/trainer.py",
        'state = {METHOD_STATE: {"modules": modules, "optimizers": optimizers}} if modules or optimizers else {}',
        "return {}",
        MODULES,
        "unbroken",
    ),
    "modules of the method not restored": Mutation(
        "training/trainer.py", '        self.method.load_state_dict(saved["modules"])\n', "", MODULES, "unbroken"
    ),
    "optimizers of the method not restored": Mutation(
        "training/trainer.py",
        "            optimizer.load_state_dict(state)\n",
        "            pass\n",
        MODULES,
        "unbroken and TwoNetworks",
    ),
    "checkpoint of another method accepted": Mutation(
        "training/trainer.py",
        'raise InputError(Problem("checkpoint of another method", file, detail, fix))',
        "return",
        MODULES,
        "refused_with_the_way_out",
    ),
    "gradients of the method's networks not clipped": Mutation(
        "training/trainer.py",
        "clip_grad_norm_(parameters_of(optimizer), GRADIENT_NORM)",
        "clip_grad_norm_(parameters_of(optimizer), GRADIENT_NORM if optimizer is self.optimizer else math.inf)",
        MODULES,
        "clipped_and_stepped",
    ),
    "all networks clipped together": Mutation(
        "training/trainer.py",
        "clip_grad_norm_(parameters_of(optimizer), GRADIENT_NORM)",
        "clip_grad_norm_([p for each in self.optimizers for p in parameters_of(each)], GRADIENT_NORM)",
        MODULES,
        "clipped_and_stepped",
    ),
    "gradients of the method's networks not averaged over processes": Mutation(
        "training/trainer.py",
        "average_gradients([*self.network.parameters(), *own])",
        "average_gradients(self.network.parameters())",
        PROCESSES,
        "peer_of_the_network",
    ),
    "schedule of the method's optimizers not stepped": Mutation(
        "training/trainer.py",
        "            schedule.step(self.current_epoch)\n",
        "            pass\n",
        MODULES,
        "peer_follows",
    ),
    "curve not logged in an epoch without its value": Mutation(
        "training/trainer.py",
        "for name in dict.fromkeys((*self.curves, *means)):",
        "for name in means:",
        MODULES,
        "curve_is_nan",
    ),
    "curve that begins later not filled with NaN": Mutation(
        "training/trainer.py",
        "logged.setdefault(name, [math.nan] * self.current_epoch)",
        "logged.setdefault(name, [])",
        TRAINER,
        "missing_curves",
    ),
    "weak and strong views exchanged": Mutation(
        "training/unlabeled_data.py",
        "zip(self.unlabeled_views, (view",
        "zip(self.unlabeled_views[::-1], (view",
        STEP,
        "2d-stacked-",
    ),
    "loader makes views that the method does not need": Mutation(
        "training/unlabeled_data.py", "count = len(self.unlabeled_views) - 1", "count = 2", MODULES, "average_follows"
    ),
    "setting without effect: views": Mutation(
        "training/unlabeled_data.py",
        'if self.settings.views == "authors" else None',
        "if False else None",
        TRAINER,
        "authors_recipe",
    ),
    "views made on the GPU do not follow the step": Mutation(
        "training/unlabeled_data.py",
        "(self.seed, self.local_rank, 4, self.steps_done)",
        "(self.seed, self.local_rank, 4)",
        TRAINER,
        "views_made_by",
    ),
    "views made on the GPU equal in all processes": Mutation(
        "training/unlabeled_data.py",
        "(self.seed, self.local_rank, 4, self.steps_done)",
        "(self.seed, 0, 4, self.steps_done)",
        TRAINER,
        "views_made_by",
    ),
    "loaders equal in all processes": Mutation(
        "training/unlabeled_data.py",
        "(self.seed, self.local_rank, 0),",
        "(self.seed, 0, 0),",
        PROCESSES,
        "draw_different",
    ),
    "validation draws as training does": Mutation(
        "training/unlabeled_data.py",
        "(self.seed, self.local_rank, 1),",
        "(self.seed, self.local_rank, 0),",
        TRAINER,
        "share_no_draws",
    ),
    "unlabeled batch not shared between processes": Mutation(
        "training/unlabeled_data.py",
        "self.unlabeled_batch_size = self.share_of(unlabeled)",
        "self.unlabeled_batch_size = unlabeled",
        PROCESSES,
        "batch_sizes",
    ),
    "unlabeled cases never verified": Mutation(
        "training/unlabeled_data.py", "verify=bool(self.settings.verify))", "verify=False)", FAULTS, "23_damaged"
    ),
    "unlabeled cases always verified": Mutation(
        "training/unlabeled_data.py", "verify=bool(self.settings.verify))", "verify=True)", FAULTS, "23_damaged"
    ),
    "labels of the data set not in the record": Mutation(
        "training/unlabeled_data.py",
        "{name: self.dataset_json.get(name) for name in DESCRIBES_DATA}",
        "{}",
        FAULTS,
        "37_a_run_goes_on",
    ),
    "nnU-Net's Dice not summed over processes": Mutation(
        "training/parallel.py",
        "with self._with_is_ddp(self.distributed):\n            return super()._build_loss()",
        "with self._with_is_ddp(False):\n            return super()._build_loss()",
        PROCESSES,
        "train_like_one",
    ),
    "labeled batch not shared between processes": Mutation(
        "training/parallel.py",
        "with self._with_is_ddp(self.distributed):\n            super()._set_batch",
        "with self._with_is_ddp(False):\n            super()._set_batch",
        PROCESSES,
        "batch_sizes",
    ),
    "process group of torchrun not joined": Mutation(
        "training/parallel.py", "        join_torchrun(device)\n", "", "docs/test_documented_commands.py", "torchrun_of"
    ),
    "network without DistributedDataParallel": Mutation(
        "training/parallel.py",
        "self.network = DistributedDataParallel(self.network, device_ids=devices)",
        "pass",
        PROCESSES,
        "train_like_one",
    ),
    "curves of each process alone": Mutation(
        "training/distributed.py", "return sum(means) / len(means)", "return mean", PROCESSES, "curves_are_means"
    ),
    "processes do not wait for the first": Mutation(
        "training/distributed.py",
        "        store.wait([key], timedelta(days=7))\n",
        "        pass\n",
        PROCESSES,
        "processes_wait",
    ),
    "GPU of the global rank": Mutation(
        "training/distributed.py",
        'int(os.environ.get("LOCAL_RANK", dist.get_rank()))',
        "dist.get_rank()",
        PROCESSES,
        "another_node",
    ),
    "gloo for GPUs": Mutation(
        "training/distributed.py", '"nccl" if device.type == "cuda" else "gloo"', '"gloo"', PROCESSES, "another_node"
    ),
    "steps not finite only if loss and gradient are not": Mutation(
        "training/finite.py", "(bad_loss | bad_gradient)", "(bad_loss & bad_gradient)", FAULTS, "31_a_loss"
    ),
    "steps not finite only if the loss is not": Mutation(
        "training/finite.py", "(bad_loss | bad_gradient)", "bad_loss", FAULTS, "31_a_loss"
    ),
    "steps not finite only if the gradient is not": Mutation(
        "training/finite.py", "(bad_loss | bad_gradient)", "bad_gradient", FAULTS, "31_a_loss"
    ),
    "checkpoint_best holds an unfinished epoch": Mutation(
        "training/durable.py",
        "        self.steps = StepLog()\n        super().on_epoch_end()\n",
        "        super().on_epoch_end()\n        self.steps = StepLog()\n",
        FAULTS,
        "38_a_run_goes_on_from_the_best",
    ),
    "state of the method saved although not finite": Mutation(
        "training/durable.py",
        "for tensors in (weights, dict(named_tensors(extra))):",
        "for tensors in (weights,):",
        MODULES,
        "average_that_is_not_finite",
    ),
    "checkpoint without network_weights accepted": Mutation(
        "training/checkpoints.py", 'FORM = {"network_weights": dict, ', "FORM = {", CHECKPOINTS, "without_an_entry"
    ),
    "checkpoint without current_epoch accepted": Mutation(
        "training/checkpoints.py",
        '"network_weights": dict, "current_epoch": int, ',
        '"network_weights": dict, ',
        CHECKPOINTS,
        "without_an_entry",
    ),
    "checkpoint without trainer_name accepted": Mutation(
        "training/checkpoints.py", '"trainer_name": str, "init_args"', '"init_args"', CHECKPOINTS, "without_an_entry"
    ),
    "checkpoint without init_args accepted": Mutation(
        "training/checkpoints.py", '"init_args": dict, "logging?"', '"logging?"', CHECKPOINTS, "without_an_entry"
    ),
    "code in a checkpoint is run": Mutation(
        "training/checkpoints.py",
        "weights_only=True",
        "weights_only=False",
        CHECKPOINTS,
        "39_a_checkpoint_with_foreign",
    ),
}

CLI = {
    "every exported checkpoint with the weights of the first": Mutation(
        "cli/model_export.py",
        "with_weights(load_checkpoint(file), file, chosen)",
        "with_weights(load_checkpoint(checkpoints[0]), file, chosen)",
        CHECKPOINTS,
        "weights_of_its_own",
    ),
    "every exported checkpoint with the final weights of its fold": Mutation(
        "cli/model_export.py",
        "load_checkpoint(file), file, chosen)",
        "load_checkpoint(file.with_name(CHECKPOINTS[0])), file, chosen)",
        CHECKPOINTS,
        "weights_of_its_own",
    ),
    "mirroring axes not exported": Mutation(
        "cli/model_export.py", '    "inference_allowed_mirroring_axes",\n', "", CHECKPOINTS, "named_as_a_stock_one"
    ),
    "state of the optimizer not exported": Mutation(
        "cli/model_export.py",
        '"network_weights", "optimizer_state",',
        '"network_weights",',
        CHECKPOINTS,
        "named_as_a_stock_one",
    ),
}

EVALUATION = {
    "two empty masks undefined in the published convention": Mutation(
        "evaluation/metrics.py",
        "if measures.prediction_voxels:",
        "if measures.prediction_voxels or not measures.reference_voxels:",
        METRICS,
    ),
    "95HD of the first direction only": Mutation(
        "evaluation/metrics.py", "np.concatenate((to_reference, to_prediction))", "to_reference", METRICS
    ),
    "ASD over both directions": Mutation(
        "evaluation/metrics.py", "float(to_reference.mean())", "float(pooled.mean())", METRICS
    ),
    "distances in mm scaled from those in voxels": Mutation(
        "evaluation/metrics.py", "if np.ptp(spacing) <= 1e-12 * spacing.max():", "if True:", METRICS
    ),
    "edge of the array is no border": Mutation(
        "evaluation/metrics.py", "padded = np.pad(mask, 1)", 'padded = np.pad(mask, 1, mode="edge")', METRICS
    ),
    "two empty masks undefined with --literature": Mutation(
        "evaluation/evaluate.py",
        "apply_literature_convention(one) if literature else one",
        "apply_literature_convention(one) if literature and one.reference_voxels else one",
        "evaluation/test_evaluate.py",
    ),
    "hidden files scored": Mutation(
        "evaluation/evaluate.py", ' and file.name[0] != "."', "", "evaluation/test_evaluate.py", "hidden"
    ),
    "detail and fix of an empty folder exchanged": Mutation(
        "evaluation/evaluate.py",
        'folder, detail, "check -r, -p and --compare, and file_ending in dataset.json"',
        'folder, "check -r, -p and --compare, and file_ending in dataset.json", detail',
        "evaluation/test_faults_evaluation.py",
        "empty_folder",
    ),
    "direction not compared": Mutation(
        "evaluation/segmentations.py", "rtol=0, atol=DIRECTION_TOLERANCE", "rtol=0, atol=1", SEGMENTATIONS
    ),
    "tolerance of the origin from the largest spacing": Mutation(
        "evaluation/segmentations.py",
        "ORIGIN_TOLERANCE_VOXELS * min(spacings[1])",
        "ORIGIN_TOLERANCE_VOXELS * max(spacings[1])",
        SEGMENTATIONS,
    ),
    "direction of NiBabel's affine normalized by row": Mutation(
        "evaluation/segmentations.py",
        "np.linalg.norm(affine[:3, :3], axis=0)",
        "np.linalg.norm(affine[:3, :3], axis=1)",
        SEGMENTATIONS,
    ),
    "only grids of different dimension compared": Mutation(
        "evaluation/segmentations.py",
        "predicted[0].shape != expected[0].shape",
        "predicted[0].shape == expected[0].shape",
        SEGMENTATIONS,
    ),
    "difference without another folder": Mutation(
        "evaluation/score_files.py",
        "other is not None and other_folder is not None",
        "other is not None or other_folder is not None",
        "evaluation/test_score_files.py",
    ),
    "column for empty masks always there": Mutation(
        "evaluation/score_files.py",
        "if not any(row[-1] for row in shown):",
        "if not any(row[1] for row in shown):",
        "evaluation/test_score_files.py",
    ),
    "tables without their upper bound": Mutation(
        "evaluation/published.py", "(*ordered, fully_supervised)", "(*ordered,)", "evaluation/test_published.py"
    ),
    "frames counted as patients": Mutation(
        "evaluation/published.py",
        'case.get("patient") for case in record["cases"].values()',
        'id(case) for case in record["cases"].values()',
        "evaluation/test_published.py",
    ),
}

REPORT = {
    "triangles seen edge-on left out": Mutation(
        "report/surfaces.py",
        "order = order[normals[order, 2] > -0.1]",
        "order = order[normals[order, 2] > 0.1]",
        "report/test_surfaces.py",
        "edge_on",
    ),
    "names wrapped too early": Mutation(
        "report/charts.py", "len(name) > length - 4", "len(name) > length - 5", "report/test_charts.py", "long_name"
    ),
    "names wrapped at the last separator": Mutation(
        "report/charts.py", "abs(i - len(name) / 2)", "abs(i - len(name) * 2)", "report/test_charts.py", "long_name"
    ),
    "voxels are no cubes without spacing": Mutation(
        "report/contours.py", "(1.0, 1.0, 1.0)", "(2.0, 1.0, 1.0)", "report/test_contours.py", "cubes"
    ),
    "crop with a narrower margin": Mutation(
        "report/contours.py", "margin = max(4,", "margin = max(3,", "report/test_contours.py", "margin"
    ),
    "ignored voxels drawn": Mutation(
        "report/case_pictures.py",
        "case_files.scheme.ignore is None",
        "case_files.scheme.ignore is not None",
        REPORT_PARTS,
        "ignored_voxels",
    ),
    "slice pictures are square": Mutation(
        "report/case_pictures.py",
        "figsize=(SLICE_INCHES, SLICE_INCHES * case.aspect_ratio), ",
        "",
        REPORT_PARTS,
        "aspect_ratio",
    ),
    "slice pictures with axes": Mutation(
        "report/case_pictures.py",
        "    axes.set_axis_off()\n    draw_slice(axes, case, index)",
        "    draw_slice(axes, case, index)",
        REPORT_PARTS,
        "without_axes",
    ),
    "cases of undefined Dice come first": Mutation(
        "report/build.py",
        "(math.isnan(dice[case]), dice[case], case)",
        "(not math.isnan(dice[case]), dice[case], case)",
        REPORT_PARTS,
        "undefined_ones_last",
    ),
    "hours of training in minutes": Mutation(
        "report/model_record.py", "seconds / 3600", "seconds / 60", "report/test_model_record.py"
    ),
}

CONVERSION = {
    "directions of NRRD files scaled by row": Mutation(
        "dataset_conversion/reading.py",
        "np.array(itk_image.GetDirection()).reshape(3, 3) * spacing",
        "np.array(itk_image.GetDirection()).reshape(3, 3) * np.array(spacing)[:, None]",
        "conversion/test_reading.py",
    ),
    "web page needs both beginnings": Mutation(
        "dataset_conversion/reading.py",
        'b"<html" in start or b"<!doctype html" in start',
        'b"<html" in start and b"<!doctype html" in start',
        CONVERSION_PARTS,
        "web_page",
    ),
    "missing cases not told": Mutation(
        "dataset_conversion/splits.py",
        'problems.append(Problem(f"{len(missing)} listed cases missing", where, ", ".join(missing), fix))',
        "pass",
        CONVERSION_PARTS,
        "missing_and_unlisted",
    ),
    "255 accepted for any number of classes": Mutation(
        "dataset_conversion/checks.py",
        "return classes == 2 and",
        "return classes == 2 or",
        CONVERSION_PARTS,
        "full_mask",
    ),
    "folds of another seed": Mutation(
        "dataset_conversion/writing.py",
        "NNUNET_SPLIT_SEED = 12345",
        "NNUNET_SPLIT_SEED = 12346",
        CONVERSION_PARTS,
        "folds_equal",
    ),
    "spacings below 1 mm refused": Mutation(
        "dataset_conversion/Dataset502_ACDC.py",
        "min(options.spacing) <= 0",
        "min(options.spacing) <= 1",
        CONVERSION_PARTS,
        "any_size",
    ),
}

CONSISTENCY_METHODS = {
    "noise of the patch, not of each image": Mutation(
        "learning/consistency.py", "axes = tuple(range(2, images.ndim))", "axes = tuple(range(images.ndim))",
        CONSISTENCY, "noise_is",
    ),
    "largest entropy of the wrong voxels": Mutation(
        "methods/uamt.py", "self.task.regions) < self.threshold", "self.task.regions) > self.threshold",
        CONSISTENCY, "slow_statement and UAMT",
    ),
    "threshold of two classes for all": Mutation(
        "methods/uamt.py", "math.log(2 if self.task.regions else self.task.channels)", "math.log(2)",
        CONSISTENCY, "slow_statement and UAMT",
    ),
    "weighted mean not summed over processes": Mutation(
        "learning/consistency.py", "weights.sum()]), distributed)", "weights.sum()]), False)",
        PROCESSES, "consistency and UAMT",
    ),
    "teacher does not catch up in the first steps": Mutation(
        "methods/consistency.py", "return min(1 - 1 / (step.index - self.settings.first_unsupervised + 1), ",
        "return max(0, ", CONSISTENCY, "teacher_follows",
    ),
    "networks learn their own labels": Mutation(
        "methods/cps.py", "zip(logits, labels[::-1], strict=True)", "zip(logits, labels, strict=True)",
        CONSISTENCY, "slow_statement and CPS",
    ),
    "predictions are not softened": Mutation(
        "methods/dmd.py", "distribution(each / self.settings.temperature, regions)", "distribution(each, regions)",
        CONSISTENCY, "slow_statement and DMD",
    ),
    "scales that differ count most": Mutation(
        "methods/urpc.py", "torch.exp(-unsure)", "torch.exp(unsure)", CONSISTENCY, "slow_statement and URPC"
    ),
    "box of the labeled image always": Mutation(
        "learning/copy_paste.py", "Mixture(inside == inward,", "Mixture((~inside).expand_as(inside == inward),",
        CONSISTENCY, "slow_statement and BCP",
    ),
    "all components of a pseudo-label": Mutation(
        "methods/bcp.py", "if self.settings.largest:", "if not self.settings.largest:",
        CONSISTENCY, "slow_statement and BCP",
    ),
    "labels of the first stage not pasted": Mutation(
        "methods/bcp.py", "target: Any = mixed(step.full_target)", "target: Any = step.full_target",
        CONSISTENCY, "first_stage",
    ),
    "lowest head of mixed images learns": Mutation(
        "learning/copy_paste.py", "used = heads[:-1] or heads", "used = heads", CONSISTENCY, "lower_heads"
    ),
    "decoders agree with themselves, not sharpened": Mutation(
        "methods/mcnet.py", "squared_distance(probabilities[i], sharp[j])",
        "squared_distance(probabilities[i], probabilities[j])", CONSISTENCY, "slow_statement and MCNet",
    ),
    "decoders with one up-sampling": Mutation(
        "learning/auxiliary_decoder.py", 'MODES[way][dimensions]', 'MODES["nearest"][dimensions]',
        CONSISTENCY, "slow_statement and MCNet",
    ),
    "distances positive inside": Mutation(
        "methods/dtc.py", "torch.sigmoid(-self.settings.steepness", "torch.sigmoid(self.settings.steepness",
        CONSISTENCY, "slow_statement and DTC",
    ),
    "distances across ignored voxels": Mutation(
        "learning/shapes.py", "valid = known if known.all() else known & (", "valid = known if True else known & (",
        "learning/test_shapes.py", "is_known_only",
    ),
    "ignored voxels have labels": Mutation(
        "learning/shapes.py", "    masks = masks & known\n", "", "methods/test_all_methods.py",
        "ignored and DTC and regions",
    ),
    "the cases that the network is least sure of leave": Mutation(
        "methods/filtermatch.py", "sorted(mean, key=lambda case: mean[case])",
        "sorted(mean, key=lambda case: -mean[case])", FILTERMATCH, "surest_share",
    ),
    "entropies of the other processes are not counted": Mutation(
        "methods/filtermatch.py", "sum_over_processes(torch.zeros_like(self.seen).index_add_(1, rows, values))",
        "torch.zeros_like(self.seen).index_add_(1, rows, values)", PROCESSES, "entropies",
    ),
    "cases that have left are drawn": Mutation(
        "training/unlabeled_data.py", "nnUNetDatasetBlosc2(str(folder), self.drawn_cases)",
        "nnUNetDatasetBlosc2(str(folder), self.unlabeled_cases)", FILTERMATCH, "drawn_cases_only",
    ),
    "discriminator learns to be deceived": Mutation(
        "methods/sassnet.py", "self.discriminator.fixed(", "self.discriminator(",
        CONSISTENCY, "slow_statement and SASSNet",
    ),
    "network learns to help the discriminator": Mutation(
        "methods/sassnet.py", "self.discriminator(distance.detach(), images)", "self.discriminator(distance, images)",
        CONSISTENCY, "slow_statement and SASSNet",
    ),
    "noise in the direction that was drawn": Mutation(
        "methods/ssnet.py", "worst_direction(gradient, first.detach())", "first.detach()",
        CONSISTENCY, "slow_statement and SSNet",
    ),
    "voxels that are labeled wrongly enter the bank of a step": Mutation(
        "methods/ssnet.py", "right = found[:labeled] & masks_by_kind(", "right = masks_by_kind(",
        CONSISTENCY, "slow_statement and SSNet",
    ),
    "bank of a step without the other processes' voxels": Mutation(
        "methods/ssnet.py", "Voxels(gathered(own.rows, distributed, 1),", "Voxels(torch.cat([own.rows, own.rows], 1),",
        PROCESSES, "consistency and SSNet",
    ),
    "voxels that one network labels otherwise are compared": Mutation(
        "methods/caml.py", "return first & second", "return first", CONSISTENCY, "slow_statement and CAML"
    ),
    "no attention among images": Mutation(
        "learning/attention.py", "attended(tokens.transpose(0, 1), self.norms[1], self.images).transpose(0, 1)",
        "attended(tokens, self.norms[1], self.images)", CONSISTENCY, "slow_statement and CAML",
    ),
    "rows of the bank are overwritten by what is not real": Mutation(
        "learning/feature_bank.py", "torch.where(real[..., None] > 0, rows.to(self.rows), self.rows[:, places])",
        "rows.to(self.rows)", "learning/test_voxels.py", "ring",
    ),
}  # fmt: skip

GROUPS = (LEARNING, METHODS, CONSISTENCY_METHODS, DATA, TRAINING, CLI, EVALUATION, REPORT, CONVERSION)
MUTATIONS = {name: mutation for group in GROUPS for name, mutation in group.items()}
