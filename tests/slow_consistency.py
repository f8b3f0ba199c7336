"""The consistency methods stated once more, slowly: one image, one class, one voxel's term after the other, in float64.

Limit: shares no arithmetic with the package; only what was drawn comes from it, as plain values.
Shapes: networks' outputs (N, C, S); every statement returns the losses by name, ``unsup`` without its weight.
"""

from __future__ import annotations

import copy
import math
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reference import heads_of
from small import supervised_loss
from torch import nn


def probabilities(z: torch.Tensor, regions: bool) -> torch.Tensor:
    if regions:
        return 1 / (1 + torch.exp(-z))
    return torch.stack(
        [torch.exp(z[:, c]) / sum(torch.exp(z[:, k]) for k in range(z.shape[1])) for c in range(z.shape[1])], 1
    )


def of_unlabeled(network: nn.Module, seen: SimpleNamespace, dropout=None, image=None) -> torch.Tensor:
    """Probabilities of the unlabeled images, or of another version of them."""
    return probabilities(heads_of(network, seen.images["weak"] if image is None else image, dropout)[0], seen.regions)


def mean_square(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    terms = [((p[n, c] - q[n, c]) ** 2).sum() for n in range(len(p)) for c in range(p.shape[1])]
    return sum(terms) / p.numel()


def soft_dice(p: torch.Tensor, q: torch.Tensor, classes: list[int]) -> torch.Tensor:
    each = []
    for c in classes:
        overlap = 2 * (p[:, c] * q[:, c]).sum() + 1e-5
        each.append(1 - overlap / ((p[:, c] ** 2).sum() + (q[:, c] ** 2).sum() + 1e-5))
    return sum(each) / len(each)


def of_dice(channels: int, regions: bool) -> list[int]:
    """Channels that a Dice averages over: without the background where it is one of two classes."""
    return [1] if channels == 2 and not regions else list(range(channels))


def mean_teacher(network, method, seen):
    student = of_unlabeled(network, seen, seen.dropouts[0])
    teacher = of_unlabeled(method.average, seen, seen.dropouts[1], seen.noisy[0]).detach()
    return {
        "sup": supervised_loss(heads_of(network, seen.images["labeled"], None)),
        "unsup": mean_square(student, teacher),
    }


def uamt(network, method, seen):
    student = of_unlabeled(network, seen, seen.dropouts[0])
    teacher, *samples = (
        of_unlabeled(method.average, seen, dropout, image).detach()
        for dropout, image in zip(seen.dropouts[1:], seen.noisy, strict=True)
    )
    assert len(samples) == 3
    mean = sum(samples) / 3
    share = 0.75 + 0.25 * math.exp(-5 * (1 - seen.progress) ** 2)
    kinds = range(mean.shape[1]) if seen.regions else [None]
    total, count, voxels = 0, 0, 0
    for c in kinds:
        if c is None:
            spread = -sum(mean[:, k] * torch.log(mean[:, k] + 1e-6) for k in range(mean.shape[1]))
            sure, channels, limit = spread < share * math.log(mean.shape[1]), range(mean.shape[1]), mean.shape[1]
        else:
            m = mean[:, c]
            spread = -(m * torch.log(m + 1e-6) + (1 - m) * torch.log(1 - m + 1e-6))
            sure, channels, limit = spread < share * math.log(2), [c], 1
        voxels += sure.numel()
        count += limit * sure.sum()
        seen.sure = seen.sure + sure.sum().item()
        for k in channels:
            total = total + ((student[:, k] - teacher[:, k]) ** 2)[sure].sum()
    assert 0.05 < seen.sure / voxels < 0.95
    return {"sup": supervised_loss(heads_of(network, seen.images["labeled"], None)), "unsup": total / count}


def of_two(network, method, seen):
    """Supervised losses of both networks."""
    both = [supervised_loss(heads_of(each, seen.images["labeled"], None)) for each in (network, method.peer)]
    return {"sup": both[0], "sup_peer": both[1]}


def cps(network, method, seen):
    z = [heads_of(each, seen.images["weak"], None)[0] for each in (network, method.peer)]
    p = [probabilities(each, seen.regions) for each in z]
    total = 0
    for learner, other in ((0, 1), (1, 0)):
        q, terms = p[other].detach(), 0
        for c in range(q.shape[1]):
            if seen.regions:
                label = (q[:, c] > 0.5).double()
                terms = (
                    terms - (label * torch.log(p[learner][:, c]) + (1 - label) * torch.log(1 - p[learner][:, c])).sum()
                )
            else:
                label = (q[:, c] == q.max(1).values).double()
                terms = terms - (label * torch.log(p[learner][:, c])).sum()
        total = total + terms / (q.numel() if seen.regions else q[:, 0].numel())
    return {**of_two(network, method, seen), "unsup": total}


def dmd(network, method, seen):
    images = torch.cat([seen.images["labeled"], seen.images["weak"]])
    p, q = (probabilities(heads_of(each, images, None)[0] / 2, seen.regions) for each in (network, method.peer))
    return {**of_two(network, method, seen), "unsup": soft_dice(p, q, of_dice(p.shape[1], seen.regions))}


def upsampled(z: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Linear interpolation between the centres of voxels, one axis after the other; constant beyond the outer ones."""
    for axis, length in enumerate(size, start=2):
        known = z.shape[axis]
        slices = []
        for i in range(length):
            place = min(max((i + 0.5) * known / length - 0.5, 0), known - 1)
            left = min(int(place), known - 1)
            right, share = min(left + 1, known - 1), place - left
            slices.append((1 - share) * z.select(axis, left) + share * z.select(axis, right))
        z = torch.stack(slices, axis)
    return z


def urpc(network, method, seen):
    size = seen.images["weak"].shape[2:]
    of_labeled = [upsampled(z, size) for z in heads_of(network, seen.images["labeled"], None)]
    scales = [
        probabilities(upsampled(z, size), seen.regions)
        for z in heads_of(network, seen.images["weak"], seen.dropouts[0])
    ]
    mean, total = sum(scales) / len(scales), 0
    for p in scales:
        squares, weights, unsure, voxels = 0, 0, 0, 0
        channels = p.shape[1]
        for group in [[c] for c in range(channels)] if seen.regions else [list(range(channels))]:
            apart, kinds = 0, 2 if seen.regions else channels
            for c in group:
                a, b = (0.99 * each[:, c] + 0.01 / kinds for each in (mean, p))
                apart = apart + a * (torch.log(a) - torch.log(b))
                if seen.regions:
                    apart = apart + (1 - a) * (torch.log(1 - a) - torch.log(1 - b))
            w = torch.exp(-apart)
            squares = squares + sum((w * (mean[:, c] - p[:, c]) ** 2).sum() for c in group)
            weights = weights + len(group) * w.sum()
            unsure, voxels = unsure + apart.sum(), voxels + apart.numel()
        total = total + squares / weights + unsure / voxels
    supervised = sum(supervised_loss(z) for z in of_labeled) / len(of_labeled)
    return {"sup": supervised, "unsup": total / len(scales)}


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest set of voxels that touch, by a face or a corner; all of them if several are as large."""
    left, found = {tuple(map(int, voxel)) for voxel in np.argwhere(mask)}, []
    while left:
        edge = [left.pop()]
        component = list(edge)
        while edge:
            voxel = edge.pop()
            near = {
                tuple(a + b for a, b in zip(voxel, move, strict=True)) for move in product((-1, 0, 1), repeat=mask.ndim)
            }
            new = near & left
            left -= new
            edge += new
            component += new
        found.append(component)
    result = np.zeros_like(mask)
    for component in found:
        if len(component) == max(map(len, found)):
            result[tuple(np.transpose(component))] = True
    return result


def bcp_masks(method, seen, i: int) -> tuple[torch.Tensor, list[torch.Tensor], bool]:
    """Of pair i: voxels from the unlabeled image, one-hot labels of it and of the labeled one, and its direction."""
    size = seen.images["weak"].shape[2:]
    inside = torch.zeros(size, dtype=torch.bool)
    inside[seen.boxes[0]] = True
    assert 0.2 < inside.double().mean() < 0.5
    inward = i % 2 == 0
    q = of_unlabeled(method.average, seen)[i].detach()
    channels = len(q)
    guess = [(q[c] > 0.5 if seen.regions else q[c] == q.max(0).values).numpy() for c in range(channels)]
    foreground = range(channels) if seen.regions else range(1, channels)
    kept = {c: largest_component(guess[c]) for c in foreground}
    guess = [kept[c] if c in kept else ~np.logical_or.reduce(list(kept.values())) for c in range(channels)]
    known = [(seen.target[i, c] == 1) if seen.regions else (seen.target[i, 0] == c) for c in range(channels)]
    unlabeled = inside if inward else ~inside
    return unlabeled, [torch.where(unlabeled, torch.tensor(g), k) for g, k in zip(guess, known, strict=True)], inward


def bcp_parts(z: torch.Tensor, pairs: list, regions: bool, reduce=lambda mask: mask) -> dict[str, torch.Tensor]:
    """Cross-entropy and Dice of logits z of the mixed images, whose masks ``reduce`` brings to their resolution."""
    p = probabilities(z, regions)
    totals = {"sup": 0, "unsup": 0}
    for name, wanted in (("sup", False), ("unsup", True)):
        for way in (True, False):
            entropy, voxels, dices = 0, 0, []
            for c in range(p.shape[1]):
                overlap, squares, size = 0, 0, 0
                for n, (unlabeled, labels, inward) in enumerate(pairs):
                    if inward is not way:
                        continue
                    chosen = reduce(unlabeled) == wanted
                    a, y = p[n, c][chosen], reduce(labels[c])[chosen].double()
                    overlap, squares, size = overlap + (a * y).sum(), squares + (a**2).sum(), size + y.sum()
                    entropy = entropy - (y * torch.log(a) + ((1 - y) * torch.log(1 - a) if regions else 0)).sum()
                    voxels += int(chosen.sum()) if regions or c == 0 else 0
                dices.append(1 - (2 * overlap + 1e-5) / (squares + size + 1e-5))
            classes = of_dice(p.shape[1], regions)
            totals[name] = totals[name] + (sum(dices[c] for c in classes) / len(classes) + entropy / voxels) / 2
    return totals


def bcp(network, method, seen):
    """The network has two heads, of which the lower one has no weight."""
    pairs = [bcp_masks(method, seen, i) for i in range(len(seen.images["weak"]))]
    images = [torch.where(pair[0], seen.images["weak"][i], seen.images["labeled"][i]) for i, pair in enumerate(pairs)]
    return bcp_parts(heads_of(network, torch.stack(images), None)[0], pairs, seen.regions)


def decoder_heads(decoder: nn.Module, features: list[torch.Tensor], way: str) -> list[torch.Tensor]:
    """Logits of a decoder that interpolates, full resolution first."""
    x, heads = features[-1], []
    for i, skip in enumerate(features[-2::-1]):
        convolution = decoder.transpconvs[i][1]
        if way == "linear":
            larger = upsampled(x, skip.shape[2:])
        else:
            larger = x
            for axis in range(2, x.ndim):
                larger = larger.repeat_interleave(skip.shape[axis] // x.shape[axis], axis)
        x = decoder.stages[i](torch.cat([convolution(larger), skip], 1))
        heads.insert(0, decoder.seg_layers[i](x))
    return heads


def mcnet(network, method, seen):
    ways = ("linear", "nearest")[: len(method.decoders)]
    losses, p = {}, []
    for name, decoder, way in (
        ("sup", None, ""),
        *((f"sup_{w}", d, w) for w, d in zip(ways, method.decoders, strict=True)),
    ):
        of = {}
        for view in ("labeled", "weak"):
            features = network.encoder(seen.images[view])
            of[view] = network.decoder(features) if decoder is None else decoder_heads(decoder, features, way)
        losses[name] = supervised_loss(of["labeled"])
        p.append(probabilities(torch.cat([of["labeled"][0], of["weak"][0]]), seen.regions))
    return {**losses, "unsup": each_sharpened(p, seen.regions)}


def each_sharpened(p: list[torch.Tensor], regions: bool) -> torch.Tensor:
    """Distances of each of some predictions from each other one, sharpened."""
    total = 0
    for i, a in enumerate(p):
        for j, b in enumerate(p):
            if i != j:
                rest = (1 - b) ** 10 if regions else sum(b[:, [c]] ** 10 for c in range(b.shape[1])) - b**10
                total = total + mean_square(a, b**10 / (b**10 + rest))
    return total


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Of every voxel from the nearest one of the other kind, by all pairs; negative inside."""
    inner, outer = np.argwhere(mask), np.argwhere(~mask)
    result = np.zeros(mask.shape)
    if not len(inner) or not len(outer):
        return result
    for own, other, sign in ((inner, outer, -1), (outer, inner, 1)):
        for voxel in own:
            result[tuple(voxel)] = sign * math.sqrt(((other - voxel) ** 2).sum(1).min())
    touches = [(-1 <= result[tuple(voxel)] < 0) for voxel in inner]
    result = np.where(result > 0, result / result.max(), result / -result.min())
    result[tuple(inner[touches].T)] = 0
    return result


def last_features(network: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of full resolution, and the features that they come from."""
    kept = []
    hook = network.decoder.stages[-1].register_forward_hook(lambda module, inputs, output: kept.append(output))
    z = network.decoder(network.encoder(images))[0]
    hook.remove()
    return z, kept[0]


def foreground_of(channels: int, regions: bool) -> list[int]:
    return list(range(channels)) if regions else list(range(1, channels))


def distances(network, method, seen):
    """Predicted distances and probabilities of labeled and unlabeled images, and the losses of the labeled ones."""
    z, last = last_features(network, torch.cat([seen.images["labeled"], seen.images["weak"]]))
    s, p = method.head(last), probabilities(z, seen.regions)
    s = (torch.exp(s) - torch.exp(-s)) / (torch.exp(s) + torch.exp(-s))
    error = 0
    for k, c in enumerate(foreground_of(p.shape[1], seen.regions)):
        for n in range(len(seen.target)):
            mask = (seen.target[n, c] == 1) if seen.regions else (seen.target[n, 0] == c)
            wanted = torch.tensor(signed_distance(mask.numpy()))
            error = error + ((s[n, k] - wanted) ** 2).sum()
    supervised = supervised_loss(heads_of(network, seen.images["labeled"], None))
    return s, p, {"sup": supervised, "distance": 0.3 * error / s[: len(seen.target)].numel()}


def dtc(network, method, seen):
    s, p, losses = distances(network, method, seen)
    agreement = 0
    for k, c in enumerate(foreground_of(p.shape[1], seen.regions)):
        agreement = agreement + ((torch.sigmoid(-1500 * s[:, k]) - p[:, c]) ** 2).sum()
    return {**losses, "unsup": agreement / s.numel()}


def judgement(discriminator: nn.Module, s: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Probability that one image (C, S) with distances (K, S) is labeled."""
    layers = [m for m in discriminator.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]

    def halved(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Every place by itself: the sum over a window of 4 voxels that moves by 2, in an image with 2 more around."""
        axes = x.ndim - 1
        x = nn.functional.pad(x, (2, 2) * axes)
        for axis in range(1, axes + 1):
            x = x.unfold(axis, 4, 2)  # the window becomes a further axis, the last one
        summed = torch.tensordot(x, layer.weight, ([0, *range(-axes, 0)], [1, *range(2, 2 + axes)]))
        return summed.movedim(-1, 0) + layer.bias.view(-1, *[1] * (summed.ndim - 1))

    x = halved(layers[0], s) + halved(layers[1], image)
    for layer in layers[2:]:
        x = halved(layer, torch.where(x > 0, x, 0.2 * x))
    x = torch.where(x > 0, x, 0.2 * x).flatten(1).mean(1)
    no, yes = (discriminator.judge.weight[i] @ x + discriminator.judge.bias[i] for i in range(2))
    return torch.exp(yes) / (torch.exp(yes) + torch.exp(no))


def sassnet(network, method, seen):
    s, _, losses = distances(network, method, seen)
    images, labeled = torch.cat([seen.images["labeled"], seen.images["weak"]]), len(seen.target)
    fixed, told, deceived = copy.deepcopy(method.discriminator), 0, 0
    for n, image in enumerate(images):
        is_labeled = judgement(method.discriminator, s[n].detach(), image)
        told = told - torch.log(is_labeled if n < labeled else 1 - is_labeled)
        if n >= labeled:
            deceived = deceived - torch.log(judgement(fixed, s[n], image))
    return {**losses, "discriminator": told / len(images), "unsup": deceived / (len(images) - labeled)}


def small_network(layers: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """Two layers of one voxel's features after the other; x (V, F)."""
    first, norm, _, last = layers
    rows = []
    for voxel in x:
        h = first.weight @ voxel + first.bias
        h = (h - h.mean()) / torch.sqrt(((h - h.mean()) ** 2).mean() + 1e-5) * norm.weight + norm.bias
        rows.append(last.weight @ torch.where(h > 0, h, 0.2 * h) + last.bias)
    return torch.stack(rows)


def voxels_by_kind(last, p, target, regions: bool) -> tuple[list, list]:
    """Features of the right voxels of labeled images and of those found in unlabeled ones, by class or region."""
    labeled, kinds = len(target), range(p.shape[1])
    found = [(p[:, c] > 0.5) if regions else (p.argmax(1) == c) for c in kinds]
    known = [(target[:, c] == 1) if regions else (target[:, 0] == c) for c in kinds]
    rows = last.movedim(1, -1)
    right = [rows[:labeled][found[c][:labeled] & known[c]] for c in kinds]
    return right, [rows[labeled:][found[c][labeled:]] for c in kinds]


def attended(tokens: torch.Tensor, norm: nn.Module, attention: nn.Module) -> torch.Tensor:
    """One sequence (L, C) with what it gets from itself, one head after the other."""
    x = (tokens - tokens.mean(1, keepdim=True)) / torch.sqrt(tokens.var(1, correction=0, keepdim=True) + 1e-5)
    x = x * norm.weight + norm.bias
    every = x @ attention.in_proj_weight.T + attention.in_proj_bias
    q, k, v = every.chunk(3, 1)
    size, heads = q.shape[1] // attention.num_heads, []
    for h in range(attention.num_heads):
        own = slice(h * size, (h + 1) * size)
        weights = torch.exp(q[:, own] @ k[:, own].T / math.sqrt(size))
        heads.append(weights / weights.sum(1, keepdim=True) @ v[:, own])
    return tokens + torch.cat(heads, 1) @ attention.out_proj.weight.T + attention.out_proj.bias


def attentive(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    images = [attended(image.flatten(1).T, layer.norms[0], layer.places) for image in x]
    places = [attended(place, layer.norms[1], layer.images) for place in torch.stack(images, 1)]
    return torch.stack(places, 2).reshape(x.shape)


def of_branch(branch: nn.Module, images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Heads, and the last features, of the network with attention and interpolation."""
    x, features, kept = images, [], []
    for stage in branch.encoder.stages:
        x = attentive(stage[1], stage[0](x)) if hasattr(stage[-1], "places") else stage(x)
        features.append(x)
    hook = branch.decoder.stages[-1].register_forward_hook(lambda module, inputs, output: kept.append(output))
    heads = decoder_heads(branch.decoder, features, "linear")
    hook.remove()
    return heads, kept[0]


def caml(network, method, seen):
    images, labeled = torch.cat([seen.images["labeled"], seen.images["weak"]]), len(seen.target)
    z, last = last_features(network, images)
    heads, of_other = of_branch(method.branch, images)
    p = [probabilities(each, seen.regions) for each in (z, heads[0])]
    kinds, filled = range(p[0].shape[1]), method.bank.filled.bool()
    rows = torch.cat([bank[there] for bank, there in zip(method.bank.rows, filled, strict=True)])
    rows = rows / (rows**2).sum(1, keepdim=True).sqrt()
    assert 0 < len(rows) < filled.numel()
    total, count = 0, 0
    for c in kinds:
        found = [(q[labeled:, c] > 0.5) if seen.regions else (q[labeled:].argmax(1) == c) for q in p]
        mean = (p[0][labeled:, c] + p[1][labeled:, c])[found[0] & found[1]]
        order, likeness = mean.argsort(descending=True)[: 2048 // len(kinds)], []
        for own, project, predict in zip((last, of_other), method.projections, method.predictions, strict=True):
            voxels = own[labeled:].movedim(1, -1)[found[0] & found[1]][order]
            h = small_network(predict, small_network(project, voxels))
            cosines = torch.exp(h @ rows.T / (h**2).sum(1, keepdim=True).sqrt() / 0.1)
            likeness.append(cosines / cosines.sum(1, keepdim=True))
        total = total - (likeness[1] * torch.log(likeness[0] + 1e-8)).sum()
        count += len(order)
    assert count > 100
    of_labeled = [supervised_loss(heads_of(network, seen.images["labeled"], None))]
    of_labeled.append(supervised_loss([head[:labeled] for head in heads]))
    unsup = each_sharpened(p, seen.regions) + 0.05 * total / count
    return {"sup": of_labeled[0], "sup_branch": of_labeled[1], "unsup": unsup}


def ssnet(network, method, seen):
    images = torch.cat([seen.images["labeled"], seen.images["weak"]])
    z, last = last_features(network, images)
    p = probabilities(z, seen.regions)
    q, classes = p.detach(), of_dice(p.shape[1], seen.regions)
    size = torch.stack([((image - image.mean()) ** 2).mean().sqrt() for image in images[:, 0]])
    size = 0.0234 * size.view(-1, *[1] * (images.ndim - 1))

    def apart(direction: torch.Tensor) -> torch.Tensor:
        noisy = last_features(network, images + size * direction)[0]
        return soft_dice(probabilities(noisy, seen.regions), q, classes)

    first = torch.cat(seen.directions[0])
    assert [(image**2).mean().item() for image in first] == [pytest.approx(1)] * len(images)
    first.requires_grad_()
    (gradient,) = torch.autograd.grad(apart(first), first)
    unsup = apart(torch.stack([image / (image**2).mean().sqrt() for image in gradient]))
    seen.sizes = unsup.item(), apart(first.detach()).item()
    for_labeled, for_unlabeled = voxels_by_kind(last, q, seen.target, seen.regions)
    total = 0
    for c, right in enumerate(for_labeled):
        bank = small_network(method.projection, right).detach()
        b = torch.sigmoid(small_network(method.of_bank[c], bank))[:, 0]
        order = b.argsort(descending=True)[:32]
        assert len(right) > 32
        bank, b = bank[order], b[order]
        for rows in (right, for_unlabeled[c]):
            h = small_network(method.prediction, small_network(method.projection, rows))
            a = torch.sigmoid(small_network(method.of_voxel[c], h))[:, 0]
            lengths = (h**2).sum(1).sqrt()[:, None] * (bank**2).sum(1).sqrt()
            total = total + ((a / a.mean())[:, None] * (b / b.mean()) * (1 - h @ bank.T / lengths)).mean()
    supervised = supervised_loss(heads_of(network, seen.images["labeled"], None))
    return {"sup": supervised, "unsup": unsup + 0.1 * total / len(for_labeled)}


STATEMENTS = {
    "MeanTeacher": mean_teacher, "UAMT": uamt, "CPS": cps, "DMD": dmd, "URPC": urpc, "BCP": bcp, "MCNet": mcnet,
    "MCNetPlus": mcnet, "DTC": dtc, "SASSNet": sassnet, "SSNet": ssnet, "CAML": caml,
}  # fmt: skip
