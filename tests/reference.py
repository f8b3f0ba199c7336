"""The method stated once more, slowly: one stream, one class, one row of the table after the other, in float64.

Limit: shares no arithmetic with the package; only the drawn boxes and perturbations come from it, as plain values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn


def mixed(tensor: torch.Tensor, boxes: Sequence, labeled: torch.Tensor | None = None, donors=()) -> torch.Tensor:
    """(U, C, S) with each sample's box from its next neighbour, or from the sample of ``labeled`` in ``donors``."""
    out = []
    for u in range(len(tensor)):
        inside, source = torch.zeros(tensor.shape[2:], dtype=bool), tensor[(u + 1) % len(tensor)]
        if boxes[u] is not None:
            inside[boxes[u]] = True
        if donors and donors[u] is not None:
            source = labeled[donors[u]].to(tensor.dtype)
        out.append(torch.where(inside, source, tensor[u]))
    return torch.stack(out)


def turned(tensor: torch.Tensor, orientations: Sequence) -> torch.Tensor:
    """(U, C, S) with each sample flipped, then turned, by numpy."""
    samples = zip(tensor.numpy(), orientations, strict=True)
    return torch.stack(
        [
            torch.tensor(np.rot90(np.flip(each, flipped), turns, plane).copy())
            for each, (flipped, turns, plane) in samples
        ]
    )


def mean_over_flips(network: nn.Module, image: torch.Tensor, flips: Sequence, regions: bool) -> torch.Tensor:
    """Logits whose probabilities are the mean over the image and its flips; without gradient."""
    means = 0
    for flip in flips:
        z = logits_of(network, torch.flip(image, flip)).detach().flip(flip)
        p = 1 / (1 + torch.exp(-z)) if regions else torch.exp(z) / torch.exp(z).sum(1, keepdim=True)
        means = means + p / len(flips)
    return torch.log(means / (1 - means)) if regions else torch.log(means)


def hard(logits: torch.Tensor, tau: float, regions: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """One-hot labels and valid voxels, both (U, C, S)."""
    z = logits.detach()
    if regions:
        p = 1 / (1 + torch.exp(-z))
        return (p > 0.5), torch.where(p > 0.5, p, 1 - p) >= tau
    p = torch.exp(z) / torch.exp(z).sum(1, keepdim=True)
    winner = p.max(1, keepdim=True).values
    first = (p == winner).int().cumsum(1) == 1
    return first & (p == winner), (winner >= tau).expand_as(p)


class SlowLabels:
    """Labels of logits with a threshold and a shift of each class that follow the labels, step by step."""

    def __init__(self, regions: bool, keep: float | None = None, align: bool = False, soft: bool = False) -> None:
        self.regions, self.keep, self.align, self.soft = regions, keep, align, soft
        self.odds: dict = {}
        self.shift: dict = {}
        self.amount: dict = {}

    def shifted(self, logits: torch.Tensor) -> torch.Tensor:
        z = logits.detach().clone()
        for c, shift in self.shift.items():
            z[:, c] += shift
        return z

    def learned(self, logits: torch.Tensor, tau: float) -> tuple[torch.Tensor, torch.Tensor]:
        """What a student learns, hard or soft, and valid voxels, both (U, C, S)."""
        y, valid = self.hard(logits, tau)
        if not self.soft:
            return y, valid
        z = 2 * self.shifted(logits)
        return 1 / (1 + torch.exp(-z)) if self.regions else torch.exp(z) / torch.exp(z).sum(1, keepdim=True), valid

    def hard(self, logits: torch.Tensor, tau: float) -> tuple[torch.Tensor, torch.Tensor]:
        """One-hot labels and valid voxels, both (U, C, S)."""
        z = self.shifted(logits)
        y, valid = hard(z, tau, self.regions)
        if self.keep is not None:
            for (c, inside), kind in self.kinds(y):
                threshold = 1 / (1 + math.exp(-self.odds.get((c, inside), 0)))
                sure = hard(z, threshold, self.regions)[1]
                for channel in [c] if self.regions else range(y.shape[1]):
                    valid[:, channel] = torch.where(kind, sure[:, channel], valid[:, channel])
        return y, valid

    def kinds(self, y: torch.Tensor):
        """Each class, or each region outside and inside, with its voxels."""
        for c in range(y.shape[1]):
            yield (c, True), y[:, c] == 1
            if self.regions:
                yield (c, False), y[:, c] == 0

    def follow(self, logits: torch.Tensor, tau: float, shares: Sequence[float]) -> None:
        """What the labels of the weak view's ``logits`` do to the next step's thresholds and shifts."""
        y, valid = self.hard(logits, tau)
        if self.keep is not None:
            for (c, inside), kind in self.kinds(y):
                if kind.any():
                    excess = valid[:, c][kind].double().mean().item() - self.keep
                    self.odds[c, inside] = min(max(self.odds.get((c, inside), 0) + 0.1 * excess, 0), 16)
        for i, share in enumerate(shares if self.align else ()):
            c = i if self.regions else i + 1
            now = y[:, c].double().mean().item() / share if share > 0 else self.amount.get(c, 1)
            self.amount[c] = 0.99 * self.amount.get(c, 1) + 0.01 * now
            size = math.log(max(self.amount[c], 0.01))
            beyond = max(size - math.log(1.2), 0) + min(size + math.log(1.2), 0)
            self.shift[c] = min(max(self.shift.get(c, 0) - 0.01 * beyond, -3), 3)


def dice(
    logits: torch.Tensor, y: torch.Tensor, valid: torch.Tensor, classes: Sequence[int], absent: str, regions: bool
):
    p = 1 / (1 + torch.exp(-logits)) if regions else torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
    losses = []
    for c in classes:
        chosen = p[:, c][valid[:, c]]
        wanted = y[:, c][valid[:, c]].to(p.dtype)
        numerator = 2 * (chosen * wanted).sum() + 1e-5
        denominator = (chosen**2).sum() + (wanted**2).sum() + 1e-5
        if absent == "count" or wanted.sum() > 0:
            losses.append(1 - numerator / denominator)
    return sum(losses) / len(losses) if losses else 0 * logits.sum()


def cross_entropy(logits: torch.Tensor, y: torch.Tensor, valid: torch.Tensor, regions: bool) -> torch.Tensor:
    if regions:
        p = 1 / (1 + torch.exp(-logits))
        per_voxel = -(y.double() * torch.log(p) + (1 - y.double()) * torch.log(1 - p))[valid]
        return per_voxel.mean() if len(per_voxel) else 0 * logits.sum()
    log_p = logits - torch.log(torch.exp(logits).sum(1, keepdim=True))
    per_voxel = -(log_p * y).sum(1)[valid[:, 0]]
    return per_voxel.mean() if len(per_voxel) else 0 * logits.sum()


def dropout(kept: torch.Tensor, rate: float, kind: str) -> SimpleNamespace:
    """Scale and shift of features of which ``kept`` stay; alpha: mean 0 and variance 1 stay 0 and 1."""
    if kind == "channel":
        return SimpleNamespace(scale=kept.double() / (1 - rate), shift=None)
    saturation = -1.0507009873554805 * 1.6732632423543772
    mean = rate * saturation
    variance = (1 - rate) * 1 + rate * saturation**2 - mean**2
    value = torch.where(kept, 0.0, saturation).double()
    return SimpleNamespace(scale=kept.double() / variance**0.5, shift=(value - mean) / variance**0.5)


def ramped(start: float, end: float, length: float, progress: float) -> float:
    """A line from ``start`` to ``end``, which it reaches at ``length`` of the run, and stays there."""
    return end if progress >= length else start + (end - start) * progress / length


def clipped(gradients: Sequence[torch.Tensor | None], most: float) -> list[torch.Tensor | None]:
    """Gradients, shortened to the norm ``most`` if theirs is greater; None: not in the loss."""
    norm = sum((g**2).sum() for g in gradients if g is not None) ** 0.5
    return [g if g is None or norm <= most else g * most / norm for g in gradients]


class Sgd:
    """Nesterov's momentum 0.99 and weight decay 3e-5, one parameter after the other."""

    def __init__(self) -> None:
        self.velocity: dict[int, torch.Tensor] = {}

    def step(self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None], rate: float) -> None:
        for i, (w, g) in enumerate(zip(parameters, gradients, strict=True)):
            if g is not None:
                g = g + 3e-5 * w.detach()
                self.velocity[i] = g if i not in self.velocity else 0.99 * self.velocity[i] + g
                w.data = w.data - rate * (g + 0.99 * self.velocity[i])


class AdamW:
    """Betas 0.9 and 0.999, epsilon 1e-8, decoupled weight decay 0.01, one parameter after the other."""

    def __init__(self) -> None:
        self.gradients: dict[int, list[torch.Tensor]] = {}

    def step(self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None], rate: float) -> None:
        for i, (w, g) in enumerate(zip(parameters, gradients, strict=True)):
            if g is not None:
                past = self.gradients.setdefault(i, [])
                past.append(g)
                mean = weighted_mean(past, 0.9)
                size = weighted_mean([each**2 for each in past], 0.999) ** 0.5
                w.data = w.data - rate * (0.01 * w.data + mean / (size + 1e-8))


def weighted_mean(values: Sequence[torch.Tensor], beta: float) -> torch.Tensor:
    """Mean in which each value weighs ``beta`` times the next one."""
    weights = [beta**age for age in range(len(values))][::-1]
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)


STUDENTS = {"s1": "strong1", "s2": "strong2", "ww": "weak", "ws": "weak", "sw": "strong2", "ss": "strong2"}


def heads_of(network: nn.Module, image: torch.Tensor, drawn: Sequence | None):
    """The host's own forward, with the features of each level perturbed."""
    changed = []
    features = network.encoder(image)
    for level, p in zip(features, drawn or [None] * len(features), strict=True):
        if p is not None:
            level = level * p.scale + (0 if p.shift is None else p.shift)
        changed.append(level)
    return network.decoder(changed)


def joint_loss(
    network: nn.Module, images: dict, boxes: dict, drawn: dict, *, supervised, target, regions, students, orientations,
    donors, references, teacher,
) -> torch.Tensor:  # fmt: skip
    """The host's loss of labeled and pseudo-labeled images as one batch, on two heads.

    ``supervised``: of (heads, targets); ``target``: of the labeled images, at both scales; ``teacher``: logits by
    teaching stream, or None for the network's own.
    """
    heads, targets = [network.decoder(network.encoder(images["labeled"]))], [list(target)]
    of_weak = teacher or {}
    for name in [name for name in STUDENTS if name in students]:
        view, image = STUDENTS[name], images[STUDENTS[name]]
        z = of_weak["wn"] if "wn" in of_weak else heads_of(network, images["weak"], None)[0]
        y = hard(z, 0, regions)[0]
        if view != "weak":
            image = turned(image, orientations[view]) if orientations else image
            image = mixed(image, boxes[view], images["labeled"], donors[view] if donors else ())
            y = turned(y, orientations[view]) if orientations else y
            y = mixed(y, boxes[view], references[0], donors[view] if donors else ())
        heads.append(heads_of(network, image, drawn.get(name)))
        label = y.to(target[0].dtype) if regions else y.int().argmax(1, keepdim=True).to(target[0].dtype)
        targets.append([label, label[(..., *[slice(1, None, 2)] * (label.ndim - 2))]])
    joined = [[torch.cat(each) for each in zip(*scales, strict=True)] for scales in (heads, targets)]
    return supervised(*joined)


def step_loss(
    network: nn.Module, images: dict, boxes: dict, drawn: dict, *, supervised, u, eta, tau, classes, regions,
    absent="count", temperature=1.0, with_ce=False, students=STUDENTS, orientations=None, donors=None, references=None,
    teacher=None, labels=None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:  # fmt: skip
    """L and its parts, with the host's own forward for every stream by itself, and what the labels are like.

    ``references``: one-hot labels of the labeled images and where they count, for boxes that come from there;
    ``teacher``: logits of the weak view that are not the network's own; ``labels``: by one threshold if None.
    """
    labels = labels or SlowLabels(regions)

    def strong(view: str, tensor: torch.Tensor, labeled: torch.Tensor | None) -> torch.Tensor:
        tensor = turned(tensor, orientations[view]) if orientations else tensor
        return mixed(tensor, boxes[view], labeled, donors[view] if donors else ())

    views = {"weak": images["weak"]}
    for name in ("strong1", "strong2"):
        views[name] = strong(name, images[name], images["labeled"])

    def predict(view: str, stream: str) -> torch.Tensor:
        output = heads_of(network, views[view], drawn.get(stream))
        return output[0] if isinstance(output, list) else output

    def h(name: str, teacher: torch.Tensor) -> torch.Tensor:
        if name not in students:
            return torch.zeros((), dtype=teacher.dtype)
        view, student = STUDENTS[name], predictions[name]
        y, valid = labels.learned(teacher, tau)
        if view != "weak":
            true_y, true_valid = references or (None, None)
            y, valid = strong(view, y, true_y), strong(view, valid, true_valid)
        loss = dice(student / temperature, y, valid, classes, absent, regions)
        if with_ce:
            loss = loss + cross_entropy(student / temperature, y, valid, regions)
        return loss * 6 / len(students)

    p_wn = predict("weak", "wn").detach() if teacher is None else teacher
    predictions = {name: predict(STUDENTS[name], name) for name in students}
    assistants = {name: predict("weak", {"sw": "ww", "ss": "ws"}[name]) for name in ("sw", "ss") if name in students}
    parts = {
        "sup": supervised(network.decoder(network.encoder(images["labeled"]))),
        "ip": (h("s1", p_wn) + h("s2", p_wn)) / 2,
        "tkd": (h("ww", p_wn) + h("ws", p_wn) + h("sw", p_wn) + h("ss", p_wn)) / 4,
        "dkd": sum((h(student, logits) for student, logits in assistants.items()), 0 * p_wn.sum()) / 2,
    }
    total = parts["sup"] + u * (parts["ip"] + (1 - eta) * parts["tkd"] + eta * parts["dkd"])
    return total, parts | label_shares(p_wn, list(assistants.values()), tau, labels) | {"p_wn": p_wn}


def label_shares(
    teacher: torch.Tensor, assistants: Sequence[torch.Tensor], tau: float, label: SlowLabels
) -> dict[str, float]:
    """Shares of the labels (voxels, or voxels of each region) that count, and that the assistants have, too."""
    labels, valid = label.hard(teacher, tau)
    alike = []
    for logits in assistants:
        same = label.hard(logits, tau)[0] == labels
        alike.append((same if label.regions else same.all(1)).double().mean().item())
    return {
        "confident_share": valid.double().mean().item(),
        "agreement": sum(alike) / len(alike) if alike else float("nan"),
    }


def logits_of(network: nn.Module, image: torch.Tensor, kept: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
    """Logits at full resolution; ``kept``: channels of each level that stay when half of them are dropped."""
    features = network.encoder(image)
    if kept is not None:
        features = [2 * level * stays for level, stays in zip(features, kept, strict=True)]
    output = network.decoder(features)
    return output[0] if isinstance(output, list) else output


def fixmatch_loss(
    network: nn.Module, images: dict, boxes: dict, *, supervised, u, tau, classes, regions
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """FixMatch: L_sup + u M(s, w); M is the masked Dice of the strong view against the labels of the weak one."""
    y, valid = hard(logits_of(network, images["weak"]), tau, regions)
    y, valid = mixed(y, boxes["strong1"]), mixed(valid, boxes["strong1"])
    strong = logits_of(network, mixed(images["strong1"], boxes["strong1"]))
    parts = {
        "sup": supervised(network.decoder(network.encoder(images["labeled"]))),
        "ip": dice(strong, y, valid, classes, "count", regions),
    }
    return parts["sup"] + u * parts["ip"], parts


def unimatch_loss(
    network: nn.Module, images: dict, boxes: dict, kept: Sequence[torch.Tensor], *, supervised, u, tau, classes, regions
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """UniMatch: L_sup + u [M(s1, w) / 4 + M(s2, w) / 4 + M(fp, w) / 2]; fp: the weak view, features perturbed."""
    y, valid = hard(logits_of(network, images["weak"]), tau, regions)
    strong = []
    for view in ("strong1", "strong2"):
        logits = logits_of(network, mixed(images[view], boxes[view]))
        strong.append(dice(logits, mixed(y, boxes[view]), mixed(valid, boxes[view]), classes, "count", regions))
    parts = {
        "sup": supervised(network.decoder(network.encoder(images["labeled"]))),
        "ip": (strong[0] + strong[1]) / 4,
        "fp": dice(logits_of(network, images["weak"], kept), y, valid, classes, "count", regions) / 2,
    }
    return parts["sup"] + u * (parts["ip"] + parts["fp"]), parts
