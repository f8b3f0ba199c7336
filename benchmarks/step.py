"""Cost of one training step: supervised, CrossMatch stacked and sequential, and the authors' released schedule.

    python benchmarks/step.py [--small] [--more] [--plans nnUNetPlans.json -c 3d_fullres] [--json out.json]
    python benchmarks/step.py --flops

FLOPs are counted by torch, with ``--flops`` of any size in seconds, since nothing is computed. Times are medians of
interleaved steps in one process, their ratio the median over rounds of one step each way. Peak memory is CUDA's
allocator's, or on a CPU the growth of the resident set in a process of its own (Linux). Forward, backward, clipping
and SGD step are timed, data loading is not. On a CPU set MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=60000000000, or page
faults of large tensors double the time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from own_process import in_own_process
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2_crossmatch.cutmix import draw_boxes
from nnunetv2_crossmatch.lesson import Lesson
from nnunetv2_crossmatch.losses import Criterion, drawn_rows, loss_table
from nnunetv2_crossmatch.network import CrossMatchNetwork
from nnunetv2_crossmatch.perturbation import FeatureDropout
from nnunetv2_crossmatch.pseudo_labels import pseudo_label
from nnunetv2_crossmatch.step import Step, mixed
from nnunetv2_crossmatch.streams import STREAMS, STRONG_VIEWS, VIEWS

CHANNELS = 4  # output classes
WAYS = ("supervised", "stacked", "sequential", "released")
MORE = (
    "stacked_recompute", "sequential_recompute", "stacked_students1", "stacked_students2", "stacked_students3",
    "stacked_half",
)  # fmt: skip
DRAWS = 12  # steps over which the FLOPs of drawn students are averaged


@dataclass(frozen=True)
class Case:
    """A network, a patch and a batch."""

    name: str
    patch: tuple[int, ...]
    batch: int
    features: tuple[int, ...]
    plans: str | None = None
    configuration: str | None = None

    def network(self) -> nn.Module:
        """The host's network with deep supervision, behind the streams."""
        if self.plans is not None:
            manager = PlansManager(self.plans).get_configuration(self.configuration)
            architecture = manager.network_arch_class_name, manager.network_arch_init_kwargs
            imports = manager.network_arch_init_kwargs_req_import
            host = get_network_from_plans(*architecture, imports, 1, CHANNELS, deep_supervision=True)
        else:
            conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if len(self.patch) == 2 else (nn.Conv3d, nn.InstanceNorm3d)
            stages = len(self.features)
            host = PlainConvUNet(
                1, stages, self.features, conv, 3, [1] + [2] * (stages - 1), 2, CHANNELS, 2, True, norm,
                {"eps": 1e-5, "affine": True}, None, None, nn.LeakyReLU, {"inplace": True}, deep_supervision=True,
            )  # fmt: skip
        return CrossMatchNetwork(host, {"weak": FeatureDropout(0.25), "strong": FeatureDropout(0.75)})


GENERIC = (
    Case("2d 256 x 256, batch 12", (256, 256), 12, (32, 64, 128, 256, 512)),
    Case("2d 256 x 256, batch 12, seven stages as nnU-Net plans", (256, 256), 12, (32, 64, 128, 256, 512, 512, 512)),
    Case("3d 112 x 112 x 80, batch 2", (112, 112, 80), 2, (32, 64, 128, 256, 320)),
)
SMALL = (
    Case("2d 128 x 128, batch 4", (128, 128), 4, (16, 32, 64, 128)),
    Case("3d 48 x 48 x 32, batch 2", (48, 48, 32), 2, (16, 32, 64, 128)),
)


class Bench:
    """One case on one device, ready to take steps each way."""

    def __init__(self, case: Case, device: torch.device, amp: bool, compiled: bool) -> None:
        torch.manual_seed(0)
        self.case, self.device = case, device
        with device:
            self.bare = case.network()
        self.network = torch.compile(self.bare) if compiled else self.bare
        self.optimizer = torch.optim.SGD(self.bare.parameters(), 0.01, momentum=0.99, nesterov=True)
        self.scaler = torch.GradScaler(device.type, enabled=amp)
        self.autocast = partial(torch.autocast, device.type) if amp else nullcontext
        self.images = {v: torch.randn(case.batch, 1, *case.patch, device=device) for v in ("labeled", *VIEWS)}
        with torch.no_grad():
            heads = self.bare(self.images["labeled"])
        self.target = [torch.randint(0, CHANNELS, (h.shape[0], 1, *h.shape[2:]), device=device) for h in heads]
        self.loss = host_loss(np.array([0.5**i for i in range(len(heads))]))
        self.count = 0

    def draw(self, unlabeled: int) -> tuple[dict, dict]:
        self.count += 1
        rng, generator = np.random.default_rng(self.count), torch.Generator(self.device).manual_seed(self.count)
        boxes = {view: draw_boxes(rng, unlabeled, self.case.patch, 0.5) for view in STRONG_VIEWS}
        shapes = self.bare.feature_shapes(unlabeled, self.case.patch)
        kinds = {name: s.perturbation for name, s in STREAMS.items() if s.perturbation}
        drawn = {n: self.bare.perturbations[k].draw(shapes, generator, self.device) for n, k in kinds.items()}
        return boxes, drawn

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def take(self, way: str) -> None:
        """One whole step: draws, forward, backward, clipping, optimizer."""
        self.optimizer.zero_grad(set_to_none=True)
        if way == "supervised":
            self.supervised()
        elif way == "released":
            self.released()
        else:
            self.crossmatch(*way.split("_"))
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.bare.parameters(), 12)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def supervised(self) -> None:
        with self.autocast():
            loss = self.loss(self.network(self.images["labeled"]), self.target)
        self.backward(loss)

    def crossmatch(self, execution: str, setting: str = "") -> None:
        """One step stacked or sequential, with ``recompute``, ``students<k>`` or ``half`` as many unlabeled samples."""
        self.bare.recompute = setting == "recompute"
        count = int(setting.removeprefix("students")) if setting.startswith("students") else len(STREAMS)
        unlabeled = self.case.batch // (2 if setting == "half" else 1)
        boxes, drawn = self.draw(unlabeled)
        images = {view: image if view == "labeled" else image[:unlabeled] for view, image in self.images.items()}
        rows = drawn_rows(loss_table(0.3), count, np.random.default_rng(self.count))
        lesson = Lesson(rows, Criterion(False, tuple(range(CHANNELS))), 0.5, boxes)
        step = Step(self.network, self.loss, self.backward, self.autocast)
        getattr(step, execution)(mixed(images, boxes), self.target, drawn, lesson, 0.5)

    def released(self) -> None:
        """The passes of the authors' released training loop, on this network, with our losses.

        A second unlabeled batch is only there to be mixed in: once clean without gradient, once beside the labeled one
        with both perturbations without gradient. Then two passes with gradient, each decoding its two halves clean
        and the second half under both perturbations.
        """
        _, drawn = self.draw(self.case.batch)
        criterion = Criterion(False, tuple(range(CHANNELS)))
        labeled, weak, first, second = self.images.values()
        with self.autocast(), torch.no_grad():
            self.network(second)
            self.two_halves(labeled, second, drawn, "ww", "ws")
        with self.autocast():
            heads, p_wn, p_ww, p_ws = self.two_halves(labeled, weak, drawn, "ww", "ws")
            p_s1, p_s2, p_sw, p_ss = self.two_halves(first, second, drawn, "sw", "ss")
            y_wn, y_ww, y_ws = (pseudo_label(p, 0.5, False) for p in (p_wn, p_ww, p_ws))
            pairs = [(p, y_wn) for p in (p_s1[0], p_s2, p_ww, p_ws, p_sw, p_ss)] + [(p_sw, y_ww), (p_ss, y_ws)]
            loss = self.loss(heads, self.target) + sum(criterion(p, y) for p, y in pairs)
        self.backward(loss)

    def two_halves(self, a: torch.Tensor, b: torch.Tensor, drawn: dict, weak: str, strong: str) -> tuple:
        features = self.bare.encoder(torch.cat((a, b)))
        half = [level[len(a) :] for level in features]
        streams = [features] + [self.bare.perturbed(half, STREAMS[n].perturbation, drawn[n]) for n in (weak, strong)]
        heads = self.bare.decoder([torch.cat(level) for level in zip(*streams, strict=True)])
        full = heads[0].split(len(a))
        return [full[0], *(head[: len(a)] for head in heads[1:])], *full[1:]


def host_loss(weights: np.ndarray) -> nn.Module:
    """The host's Dice and cross-entropy over all heads."""
    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    return DeepSupervisionWrapper(
        DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss), weights / weights.sum()
    )


def flops(bench: Bench, way: str) -> float:
    """Floating-point operations of a step; of drawn students the mean over several draws."""
    steps = DRAWS if "students" in way else 1
    with FlopCounterMode(display=False) as counter:
        for _ in range(steps):
            bench.take(way)
    return counter.get_total_flops() / steps


def seconds(step: Callable[[], None], device: torch.device) -> float:
    """Wall time; on a GPU between two events of the stream."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    start_time = time.perf_counter()
    step()
    return time.perf_counter() - start_time


def resident_growth(case: Case, way: str) -> int:
    """Peak resident memory of two steps above that of the network, in bytes; runs in a process of its own."""
    bench = Bench(case, torch.device("cpu"), False, False)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status_bytes("VmRSS")
    for _ in range(2):
        bench.take(way)
    return status_bytes("VmHWM") - before


def status_bytes(entry: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


def peak_memory(bench: Bench, way: str) -> int:
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        bench.take(way)
        return torch.cuda.max_memory_allocated()
    # On the heap freed memory would count, and tensors of up to 32 MiB would come to lie there in the course of time.
    with patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_="262144"):
        for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"):
            os.environ.pop(name, None)
        return in_own_process(resident_growth, bench.case, way)


def ways_of(args: argparse.Namespace) -> tuple[str, ...]:
    chosen = {"supervised", *(args.ways or WAYS), *(MORE if args.more else ())}
    return tuple(way for way in (*WAYS, *MORE) if way in chosen)


def measure(case: Case, args: argparse.Namespace, device: torch.device) -> dict[str, dict[str, float]]:
    bench = Bench(case, device, args.amp, args.compile)
    ways = ways_of(args)
    for way in ways:
        bench.take(way)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.repeats):
        for way in ways:
            times[way].append(seconds(partial(bench.take, way), device))
    plain = Bench(case, device, False, False)
    return {
        way: {
            "gflop": flops(plain, way) / 1e9,
            "ms": statistics.median(times[way]) * 1000,
            "ms_min": min(times[way]) * 1000,
            "ms_max": max(times[way]) * 1000,
            "time_ratio": statistics.median(t / base for t, base in zip(times[way], times["supervised"], strict=True)),
            "peak_mib": peak_memory(bench, way) / 2**20,
        }
        for way in ways
    }


def counted(case: Case, ways: Sequence[str]) -> str:
    """FLOPs of a step each way, on tensors without content."""
    with FakeTensorMode():
        bench = Bench(case, torch.device("cpu"), False, False)
        numbers = {way: flops(bench, way) for way in ways}
    rows = [f"{way:20}{n / 1e9:12.1f} GFLOP{n / numbers['supervised']:7.2f}" for way, n in numbers.items()]
    return "\n".join([case.name, *rows])


def table(case: Case, rows: dict[str, dict[str, float]]) -> str:
    base = rows["supervised"]
    lines = [
        case.name,
        f"{'':20}{'GFLOP':>10}{'ratio':>7}{'ms':>10}{'min':>9}{'max':>9}{'ratio':>7}{'t/F':>6}{'MiB':>9}{'ratio':>7}",
    ]
    for way, row in rows.items():
        flop_ratio, time_ratio = row["gflop"] / base["gflop"], row["time_ratio"]
        lines.append(
            f"{way:20}{row['gflop']:10.1f}{flop_ratio:7.2f}{row['ms']:10.1f}{row['ms_min']:9.1f}{row['ms_max']:9.1f}"
            f"{time_ratio:7.2f}{time_ratio / flop_ratio:6.2f}{row['peak_mib']:9.0f}"
            f"{row['peak_mib'] / base['peak_mib']:7.2f}"
        )
    if {"released", "stacked"} <= rows.keys():
        faster = rows["released"]["time_ratio"] / rows["stacked"]["time_ratio"]
        lines.append(f"stacked is {faster:.2f} times faster than the released schedule")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="sizes for 2 CPU cores")
    parser.add_argument(
        "--more", action="store_true", help="also recompute1, students1 to 3, half the unlabeled samples"
    )
    parser.add_argument("--ways", nargs="+", choices=(*WAYS, *MORE), help="only these, beside the supervised step")
    parser.add_argument("--plans", help="plans file to take network, patch and batch from")
    parser.add_argument("-c", dest="configuration", default="3d_fullres", help="its configuration")
    parser.add_argument("--flops", action="store_true", help="count only")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps each way (default: %(default)s)")
    parser.add_argument("--amp", action="store_true", help="mixed precision (GPU)")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = SMALL if args.small else GENERIC
    if args.plans:
        chosen = PlansManager(args.plans).get_configuration(args.configuration)
        patch = tuple(chosen.patch_size)
        cases = (
            Case(f"{args.configuration} {patch}", patch, max(chosen.batch_size, 2), (), args.plans, args.configuration),
        )
    if args.flops:
        print("\n\n".join(counted(case, ways_of(args)) for case in cases))
        return
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}, amp {args.amp}, compile {args.compile}")
    results = {}
    for case in cases:
        results[case.name] = measure(case, args, device)
        print(f"\n{table(case, results[case.name])}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"device": name, "torch": torch.__version__, "steps": results}, indent=2))


if __name__ == "__main__":
    main()
