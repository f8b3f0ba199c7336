"""What only a CUDA device can show; not measured yet where none was at hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import small
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from small import gradient, host_network, random_step, run_step, unsupervised_loss

from nnunetv2_crossmatch.data.views import WeakStrongViews, authors_intensity_transforms, with_deterministic_blur
from nnunetv2_crossmatch.learning.losses import Criterion
from nnunetv2_crossmatch.learning.memory import fits_in_memory
from nnunetv2_crossmatch.learning.network import EncoderDecoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def _float32_is_float32(monkeypatch):
    """TF32, cuDNN's default in convolutions, has 10 bits: more than the differences that are looked for."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_mixed_precision_gives_the_gradient_of_float32_in_both_executions(dimensions):
    """With a gradient scale, as the trainer has; tau 0, because a voxel at the threshold would count in one of them."""
    network = EncoderDecoder(host_network(dimensions, 3)).cuda()
    step = random_step(network, 2, 2).to("cuda")
    scale, gradients = 4096.0, {}
    for way in ("stacked", "sequential", "float32"):
        network.zero_grad()
        loss = unsupervised_loss(step, Criterion(False, (0, 1, 2)), tau=0.0)
        options = {"autocast": lambda: torch.autocast("cuda", cache_enabled=False)} if way != "float32" else {}
        run_step(network, step, "stacked" if way == "float32" else way, loss, scale=lambda x: scale * x, **options)
        assert all(part.dtype == torch.float32 for part in loss.parts.values())
        gradients[way] = gradient(network) / scale
    for way in ("stacked", "sequential"):
        assert (gradients[way] - gradients["float32"]).norm() < 0.02 * gradients["float32"].norm(), way


def test_a_memory_that_only_holds_sequential_streams_is_noticed_and_given_back(monkeypatch):
    monkeypatch.setitem(small.PATCH, 2, (512, 512))
    network = EncoderDecoder(host_network(2, 3)).cuda()
    step = random_step(network, 4, 4).to("cuda")
    loss = unsupervised_loss(step, Criterion(False, (0, 1, 2)))

    def fits(execution: str) -> bool:
        return fits_in_memory(lambda: run_step(network, step, execution, loss), network)

    peaks = {}
    for execution in ("sequential", "stacked"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        assert fits(execution)
        peaks[execution] = torch.cuda.max_memory_allocated()
    assert peaks["stacked"] > 1.5 * peaks["sequential"]
    # What is reserved beyond that is the allocator's rest in its segments, of which each execution may need as much.
    slack = 32 * 2**20
    assert peaks["stacked"] - peaks["sequential"] > 4 * slack
    held = torch.cuda.memory_allocated()
    cap = (peaks["sequential"] + peaks["stacked"]) / 2 / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(cap)
    try:
        assert not fits("stacked")
        assert torch.cuda.memory_allocated() == pytest.approx(held, abs=2**20)
        assert fits("sequential")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_several_gpus_as_the_scaling_page_prints_it(prepared_copy):
    text = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
    (line,) = re.findall(r"^    (nnUNetv2_train .* -num_gpus \d+)$", text, re.MULTILINE)
    short = "nnUNetTrainerCrossMatch_1epochs_iters2_valiters1_batch4"
    line = line.replace("501 3d_fullres", f"{prepared_copy.id} 2d").replace("nnUNetTrainerCrossMatch", short)
    prepared_copy.run(*re.sub(r"-num_gpus \d+", "-num_gpus 2", line).split())
    assert list(prepared_copy.results.glob(f"{short}__*/fold_all/checkpoint_final.pth"))


@pytest.mark.parametrize("recipe", ["host", "authors"])
@pytest.mark.parametrize("patch", [(24, 24), (12, 16, 16)])
def test_strong_views_are_made_where_the_crop_is(recipe, patch):
    """Drawn on the CPU's generator or the GPU's, with the host's transforms; only that they run and differ is shown."""
    transforms = nnUNetTrainer.get_training_transforms(
        patch, (-0.5, 0.5), None, tuple(range(len(patch))), False, use_mask_for_norm=[True]
    )
    views = WeakStrongViews(
        with_deterministic_blur(transforms),
        authors_intensity_transforms(len(patch)) if recipe == "authors" else None,
        geometry_only=True,
    )
    segmentation = torch.zeros(1, *patch, dtype=torch.int16, device="cuda")
    for _ in range(20):
        weak, first, second = views.make_views(torch.randn(1, *patch, device="cuda"), segmentation)["image"]
        assert weak.is_cuda
        assert not torch.equal(weak, first)
        assert not torch.equal(first, second)
