"""Settings of the methods that are a table of streams and rows, and which of them cannot be had together.

Limit: plain values; ``table`` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

from nnunetv2_crossmatch.methods.settings import HOST, OURS, RELEASED, CommonSettings, setting, switch

CONTRADICTIONS = {
    ("joint1", "execsequential"): "joint1 makes one batch of all images, execsequential takes them one after the other",
    ("joint1", "keep"): "joint1 counts every voxel, keep only the surest",
    ("joint1", "softlabels1"): "joint1 is under nnU-Net's loss, which takes hard labels, softlabels1 makes soft ones",
    ("keep", "tauend"): "keep counts a share of the voxels, tauend those above a threshold",
    ("softlabels1", "absentskip"): "no class is absent from soft labels, absentskip leaves absent ones out",
}
"""What no run can have both of: beginnings of tokens, and why."""


@dataclass(frozen=True)
class TableSettings(CommonSettings):
    """Settings of pseudo-labels, losses and execution."""

    tau: float | None = setting(
        None,
        "tau",
        "confidence from which a pseudo-label counts; 0.85 with one foreground class, 0.5 with more (paper: 0.95)",
        f"paper, IV-2; {OURS}",
        low=0,
        high=1,
    )
    tau_end: float | None = setting(
        None, "tauend", "confidence threshold at the end of the run, reached linearly from tau", OURS, low=0, high=1
    )
    temperature: float = setting(1.0, "temp", "softmax temperature of the students", RELEASED, low=0.01)
    absent: str = setting(
        "count",
        "absent",
        "a class without valid pseudo-labels: count its Dice loss of 1, which has hardly a gradient, or leave it out "
        "of the mean, which gives the others more weight",
        RELEASED,
        choices=("count", "skip"),
    )
    classes: str = setting(
        "auto",
        "classes",
        "classes of the Dice: auto is foreground with one foreground class, all with several",
        RELEASED,
        choices=("auto", "foreground", "all"),
    )
    criterion: str = setting(
        "dice",
        "criterion",
        "distance of student and pseudo-label; dicece adds cross-entropy on the valid voxels",
        f"paper, III-E; {RELEASED}",
        choices=("dice", "dicece"),
    )
    cutmix: float = setting(0.5, "cutmix", "probability that a strong view receives a box", RELEASED, low=0, high=1)
    labeled_mix: float = setting(
        0.0,
        "labeledmix",
        "probability that such a box comes from a labeled image, with its true label, instead of an unlabeled one",
        "BCP (CVPR 2023); ours",
        low=0,
        high=1,
    )
    geometry: int = switch(
        "geometry", "1: flips and quarter turns of its own for every strong view", "nnFilterMatch (arXiv 2509.19746)"
    )
    ema: float = setting(
        0.0,
        "ema",
        "the weak view's labels are those of a moving average of the weights, of which this share stays in a step; 0: "
        "of the network itself",
        "Mean Teacher (NIPS 2017)",
        low=0,
        high=1,
    )
    mirror_teacher: int = switch(
        "mirrorteacher", "1: the weak view's labels are the mean over the image and one random flip of it", HOST
    )
    keep: float = setting(
        0.0,
        "keep",
        "share of the voxels of every class that counts, the surest ones, instead of those above tau; 0: by tau",
        "CBST (ECCV 2018)",
        low=0,
        high=1,
    )
    align: int = switch(
        "align",
        "1: the labels' logits of a class are shifted while its amount is not within a fifth of the labeled volumes'",
        "DARS (ICCV 2021), AdaMatch (ICLR 2022)",
    )
    soft_labels: int = switch(
        "softlabels", "1: students learn the sharpened probabilities instead of hard labels", "MixMatch (NeurIPS 2019)"
    )
    joint: int = switch(
        "joint",
        "1: labeled and pseudo-labeled images are one batch under the host's loss, on all heads; tau, u, absent, "
        "classes, criterion and temp have no part in it",
        "nnFilterMatch (arXiv 2509.19746)",
    )
    execution: str = setting(
        "auto",
        "exec",
        "all streams in one decoder call, or one after the other in less memory; auto tries the first",
        f"paper, III-F; {OURS}",
        choices=("auto", "stacked", "sequential"),
    )

    def tau_at(self, progress: float, foreground_classes: int) -> float:
        """Confidence threshold at ``progress`` (0 to 1) of a run, with that many foreground classes or regions."""
        from_data = 0.85 if foreground_classes == 1 else 0.5
        tau = from_data if self.tau is None else self.tau
        end = tau if self.tau_end is None else self.tau_end
        return tau + (end - tau) * progress
