"""The host's U-Net, its encoder and decoder callable apart, behind one ``forward`` with a mode.

torch.compile sees only ``forward``, so every way through the network is a mode of it. The
state dict is the host's, key for key. Limit: knows features and rows of a batch, no labels and no losses.
Shapes: N rows, C channels, S spatial axes; features are lists of (N, C_l, S_l), bottleneck last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from nnunetv2_crossmatch.errors import Problem, UnsupportedError
from nnunetv2_crossmatch.learning.perturbation import Perturbation, ValueMask, perturbed
from nnunetv2_crossmatch.learning.streams import LABELED

Features = list[torch.Tensor]


class StackedOutput(NamedTuple):
    """Logits of one step: ``labeled`` as the host's loss wants them, the rest by stream, teachers without gradient."""

    labeled: torch.Tensor | list[torch.Tensor]
    streams: dict[str, torch.Tensor]


class EncoderDecoder(nn.Module):
    """Adopts ``encoder`` and ``decoder`` of a plain-convolution or residual-encoder U-Net of the host.

    Args:
        network: of the host.
        recompute: activation checkpointing: of the encoder only the features are held, and it runs once more in the
            backward pass. Not in mode ``predict``.

    Raises:
        UnsupportedError: the network has no encoder and decoder of that form (Primus).
    """

    def __init__(self, network: nn.Module, recompute: bool = False) -> None:
        super().__init__()
        needed = ("stages", "transpconvs", "seg_layers")
        if not all(hasattr(getattr(network, "decoder", None), name) for name in needed):
            fix = "use a plans file with PlainConvUNet or ResidualEncoderUNet"
            detail = f"{type(network).__name__} has no U-Net encoder and decoder to perturb the features between"
            raise UnsupportedError(Problem("network not supported", "the plans", detail, fix))
        # The host registers the encoder first; the decoder holds it too. Same order, same keys.
        self.encoder: Any = network.encoder
        self.decoder: Any = network.decoder
        self.recompute = recompute

    def forward(self, inputs: Any, mode: str = "predict", **options: Any) -> Any:
        """``predict``: the host's forward. The other modes are the methods of their names."""
        if mode == "predict":
            return self.decoder(self.encoder(inputs))
        if mode == "encode":
            return self.encode(inputs)
        if mode == "decode":
            return self.decode(list(inputs), **options)
        if mode == "stacked":
            return self.stacked(inputs, **options)
        if mode == "heads_and_last":
            return self.heads_and_last(inputs, **options)
        raise ValueError(f"mode must be predict, encode, decode, stacked or heads_and_last, got {mode}")

    def encode(self, images: torch.Tensor) -> Features:
        """Features of ``images`` (N, C, S)."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.encoder, images, use_reentrant=False)
        return self.encoder(images)

    def decode(
        self, features: Features, labeled_rows: int = 0, drawn: Sequence[Perturbation | ValueMask | None] | None = None
    ) -> list[torch.Tensor]:
        """Logits, full resolution first; the lower deep-supervision heads see the first ``labeled_rows`` only.

        ``drawn`` is the perturbation of each level, or None. ``features`` is emptied on the way: no level is held
        longer than it is needed.
        """
        return decoded(self.decoder, perturbed(features, drawn), labeled_rows)[0]

    def heads_and_last(self, images: torch.Tensor, labeled_rows: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Logits of ``images`` (N, C, S) as :meth:`decode` returns them, and the last features (N, C_0, S)."""
        return decoded(self.decoder, self.encode(images), labeled_rows)

    def stacked(
        self,
        images: Mapping[str, torch.Tensor],
        drawn: Mapping[str, Sequence[Perturbation | ValueMask | None]],
        views: Mapping[str, str],
        teachers: Sequence[str],
        students: Sequence[str],
        joint: bool = False,
        parts: Callable[..., Any] | None = None,
    ) -> StackedOutput:
        """One encoder call for all views, one decoder call for all that learn (III-F); teachers without gradient.

        Args:
            images: rows by view, ``labeled`` first, each (B or U, C, S).
            drawn: perturbations by stream; a stream without one is not perturbed.
            views: view of the unlabeled images by stream.
            teachers: streams without gradient.
            students: streams with gradient.
            joint: all heads see the students' rows, too, and ``labeled`` holds them behind the labeled ones.
            parts: this network, compiled, whose modes ``encode`` and ``decode`` are called in place of its own.
        """
        encode = self.encode if parts is None else partial(parts, mode="encode")
        decode = self.decode if parts is None else partial(parts, mode="decode")
        features = split_views(encode(torch.cat(list(images.values()))), images)

        def stream_features(name: str) -> Features:
            return perturbed(list(features[views[name]]), drawn.get(name))

        with torch.no_grad():
            # Detached, all teachers alike: to the compiler a tensor that requires a gradient is of another kind.
            of_teachers = {name: [level.detach() for level in stream_features(name)] for name in teachers}
            logits = {name: decode(levels)[0] for name, levels in of_teachers.items()}
        rows = [features[LABELED], *map(stream_features, students)]
        sizes = [len(row[0]) for row in rows]
        levels = [torch.cat(level) for level in zip(*rows, strict=True)]
        del rows
        heads = decode(levels, labeled_rows=sum(sizes) if joint else sizes[0])
        labeled, *rest = heads[0].split(sizes)
        logits |= dict(zip(students, rest, strict=True))
        return StackedOutput(self.for_host(heads if joint else [labeled, *heads[1:]]), logits)

    def for_host(self, heads: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Heads in the form in which the host's loss expects them."""
        return heads if self.decoder.deep_supervision else heads[0]

    def feature_shapes(self, rows: int, patch_size: Sequence[int]) -> list[tuple[int, ...]]:
        """Shapes (N, C_l, S_l) of the features of ``rows`` images of ``patch_size``."""
        size, shapes = tuple(patch_size), []
        for channels, stride in zip(self.encoder.output_channels, self.encoder.strides, strict=True):
            size = tuple(-(-edge // step) for edge, step in zip(size, stride, strict=True))
            shapes.append((rows, channels, *size))
        return shapes


def decoded(decoder: Any, features: Features, labeled_rows: int = 0) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Logits, full resolution first, and the features (N, C_0, S) of the last stage.

    Args:
        decoder: has the host's parts: ``transpconvs``, ``stages``, ``seg_layers`` and ``deep_supervision``.
        features: emptied on the way.
        labeled_rows: rows that the lower heads see.
    """
    x, heads = features.pop(), []
    for up, stage, head in zip(decoder.transpconvs, decoder.stages, decoder.seg_layers, strict=True):
        x = stage(torch.cat((up(x), features.pop()), dim=1))
        if head is decoder.seg_layers[-1]:
            heads.append(head(x))
        elif labeled_rows and decoder.deep_supervision:
            heads.append(head(x[:labeled_rows]))
    return heads[::-1], x


def full_resolution(output: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    """Logits (N, C, S) out of a network's output, which is a list of heads with deep supervision."""
    return output if isinstance(output, torch.Tensor) else output[0]


def split_views(features: Features, images: Mapping[str, torch.Tensor]) -> dict[str, Features]:
    """Features of the stacked views, by view."""
    sizes = [len(view) for view in images.values()]
    levels = [level.split(sizes) for level in features]
    return {view: list(parts) for view, parts in zip(images, zip(*levels, strict=True), strict=True)}
