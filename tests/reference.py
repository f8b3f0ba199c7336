"""The method stated once more, slowly: one stream, one class, one row of the table after the other, in float64.

Limit: shares no arithmetic with the package; only the drawn boxes and perturbations come from it, as plain values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def mixed(tensor: torch.Tensor, boxes: Sequence) -> torch.Tensor:
    """(U, C, S) with each sample's box from its next neighbour."""
    out = []
    for u in range(len(tensor)):
        inside = torch.zeros(tensor.shape[2:], dtype=bool)
        if boxes[u] is not None:
            inside[boxes[u]] = True
        out.append(torch.where(inside, tensor[(u + 1) % len(tensor)], tensor[u]))
    return torch.stack(out)


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


def dice(
    logits: torch.Tensor, y: torch.Tensor, valid: torch.Tensor, classes: Sequence[int], absent: str, regions: bool
):
    p = 1 / (1 + torch.exp(-logits)) if regions else torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
    losses = []
    for c in classes:
        chosen = p[:, c][valid[:, c]]
        wanted = y[:, c][valid[:, c]].to(p.dtype)
        numerator = 2 * (chosen * wanted).sum() + 1e-5
        denominator = (chosen**2).sum() + wanted.sum() + 1e-5
        if absent == "count" or wanted.sum() > 0:
            losses.append(1 - numerator / denominator)
    return sum(losses) / len(losses) if losses else 0 * logits.sum()


def cross_entropy(logits: torch.Tensor, y: torch.Tensor, valid: torch.Tensor, regions: bool) -> torch.Tensor:
    if regions:
        p = 1 / (1 + torch.exp(-logits))
        per_voxel = -torch.log(torch.where(y, p, 1 - p))[valid]
        return per_voxel.mean() if len(per_voxel) else 0 * logits.sum()
    log_p = logits - torch.log(torch.exp(logits).sum(1, keepdim=True))
    per_voxel = -log_p[y & valid]
    return per_voxel.mean() if len(per_voxel) else 0 * logits.sum()


def step_loss(
    network: nn.Module, images: dict, boxes: dict, drawn: dict, *, supervised, u, eta, tau, classes, regions,
    absent="count", temperature=1.0, with_ce=False,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:  # fmt: skip
    """L and its parts, with the host's own forward for every stream by itself."""
    views = {"weak": images["weak"]}
    for name in ("strong1", "strong2"):
        views[name] = mixed(images[name], boxes[name])

    def predict(view: str, perturbation: str | None) -> torch.Tensor:
        features = network.encoder(views[view])
        if perturbation is not None:
            changed = []
            for level, p in zip(features, drawn[perturbation], strict=True):
                if p is not None:
                    level = level * p.scale + (0 if p.shift is None else p.shift)
                changed.append(level)
            features = changed
        output = network.decoder(features)
        return output[0] if isinstance(output, list) else output

    p_wn = predict("weak", None).detach()
    p_s1, p_s2 = predict("strong1", None), predict("strong2", None)
    p_ww, p_ws = predict("weak", "ww"), predict("weak", "ws")
    p_sw, p_ss = predict("strong2", "sw"), predict("strong2", "ss")

    def h(student: torch.Tensor, teacher: torch.Tensor, view: str) -> torch.Tensor:
        y, valid = hard(teacher, tau, regions)
        if view != "weak":
            y, valid = mixed(y, boxes[view]), mixed(valid, boxes[view])
        loss = dice(student / temperature, y, valid, classes, absent, regions)
        return loss + cross_entropy(student / temperature, y, valid, regions) if with_ce else loss

    parts = {
        "sup": supervised(network.decoder(network.encoder(images["labeled"]))),
        "ip": (h(p_s1, p_wn, "strong1") + h(p_s2, p_wn, "strong2")) / 2,
        "tkd": (h(p_ww, p_wn, "weak") + h(p_ws, p_wn, "weak") + h(p_sw, p_wn, "strong2") + h(p_ss, p_wn, "strong2"))
        / 4,
        "dkd": (h(p_sw, p_ww, "strong2") + h(p_ss, p_ws, "strong2")) / 2,
    }
    total = parts["sup"] + u * (parts["ip"] + (1 - eta) * parts["tkd"] + eta * parts["dkd"])
    return total, parts
