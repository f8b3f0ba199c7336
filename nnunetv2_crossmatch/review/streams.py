"""How far the decodings of one case differ: perturbed ones from the clean one, and other networks from the first.

A method that is a table of streams is asked as it was trained: its strong views, and its dropout of features, each in
several draws. Moving averages, second networks and further folds are asked, too. Limit: on the grid of the network, and
without mirroring; a stock network of one fold has nothing to differ from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from nnunetv2_crossmatch.data.loader import seed_everything
from nnunetv2_crossmatch.data.views import WeakStrongViews, authors_intensity_transforms
from nnunetv2_crossmatch.errors import UnsupportedError
from nnunetv2_crossmatch.learning.network import EncoderDecoder
from nnunetv2_crossmatch.learning.perturbation import FeatureDropout
from nnunetv2_crossmatch.methods.names import method_of, settings_from_name
from nnunetv2_crossmatch.methods.table import TableMethod
from nnunetv2_crossmatch.prediction.predictor import CasePredictor
from nnunetv2_crossmatch.review.measures import dice, mean_of_defined
from nnunetv2_crossmatch.training.checkpoints import load_checkpoint, other_networks, trained_with
from nnunetv2_crossmatch.training.named import trainer_class
from nnunetv2_crossmatch.training.trainer import task_of

STRONG_VIEW = "strong view"
FOLDS = "folds"


@dataclass(frozen=True)
class Perturbed:
    """What a stream does to the image and to the features; nothing: the clean decoding."""

    views: WeakStrongViews | None = None
    dropout: FeatureDropout | None = None


class SeededDecoding(nn.Module):
    """A perturbed pass of ``network`` that draws the same numbers in each call: all windows of a case are alike.

    Attributes:
        pooled: of each call, the mean over space of the encoder's last features (channels).
    """

    def __init__(self, network: EncoderDecoder, perturbed: Perturbed, seed: int = 0) -> None:
        super().__init__()
        self.network, self.perturbed, self.seed = network, perturbed, seed
        self.pooled: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (1, C, S) of one window (1, channels, S)."""
        if self.perturbed.views is not None:
            images = strong_view(self.perturbed.views, images, self.seed)
        features = self.network(images, mode="encode")
        self.pooled.append(features[-1].flatten(2).mean(2)[0].float().cpu())
        return self.network(features, mode="decode", drawn=self._drawn(images))[0]

    def _drawn(self, images: torch.Tensor) -> Any:
        if self.perturbed.dropout is None:
            return None
        shapes = self.network.feature_shapes(len(images), images.shape[2:])
        generator = torch.Generator(images.device).manual_seed(self.seed)
        return self.perturbed.dropout.draw(shapes, generator, images.device)


def strong_view(views: WeakStrongViews, images: torch.Tensor, seed: int) -> torch.Tensor:
    """The strong view of a window (1, channels, S) that the training's transforms make with this seed."""
    seed_everything((seed,))
    made = views.make_all_views(images, torch.zeros_like(images[:, :1]))
    return made[:, images.shape[1] :]


@dataclass(frozen=True)
class Disagreement:
    """How far a case's decodings differ.

    Attributes:
        kinds: 1 - Dice (mean over the classes that one of both has) of each draw or network, by kind.
        features: the encoder's last features, mean over the windows and space of the clean pass; empty if there is no
            encoder.
        contested: share of the decodings (z, y, x) whose label differs from the clean one; None without any.
    """

    kinds: dict[str, list[float]]
    features: list[float]
    contested: torch.Tensor | None


@dataclass
class Streams:
    """The decodings of a model that are compared, one fold's network being the clean one.

    Args:
        model: the model.
        fold: index, in the files of the model, of the fold that is perturbed.
        with_folds: compare the other folds, too.
        draws: of each perturbation.
        seed: of the first draw.
    """

    model: CasePredictor
    fold: int
    with_folds: bool
    draws: int
    seed: int
    perturbations: dict[str, Perturbed] = field(init=False)
    others: dict[str, list[dict[str, torch.Tensor]]] = field(init=False)

    def __post_init__(self) -> None:
        checkpoint = load_checkpoint(self.model.files[self.fold])
        self.network: Any = adopted(self.model.predictor.network)
        self.weights = checkpoint["network_weights"]
        configuration = trained_with(self.model.files[self.fold], checkpoint)["configuration"]
        arguments = self.model, checkpoint["trainer_name"], configuration
        self.perturbations = perturbations(*arguments) if self.network else {}
        self.others = {name: [weights] for name, weights in other_networks(checkpoint).items()}
        every = self.model.predictor.list_of_parameters
        if self.with_folds and len(every) > 1:
            self.others[FOLDS] = [weights for i, weights in enumerate(every) if i != self.fold]

    @property
    def kinds(self) -> list[str]:
        """Names of what is compared with the clean decoding."""
        return [*self.perturbations, *self.others]

    def disagreement(self, data: torch.Tensor) -> Disagreement:
        """Of a preprocessed image (channels, z, y, x)."""
        clean, features = self._clean(data)
        kinds: dict[str, list[float]] = {kind: [] for kind in self.kinds}
        contested = torch.zeros(data.shape[1:], dtype=torch.int16)
        for kind, decode in self._decodings(data):
            labels = self._labels(decode())
            kinds[kind].append(1 - mean_of_defined(class_dice(clean, labels, self.model.regions), none=1.0))
            differs = clean != labels
            contested += differs.any(0) if self.model.regions else differs
        count = sum(map(len, kinds.values()))
        return Disagreement(kinds, features, contested / count if count else None)

    def _clean(self, data: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
        if self.network is None:
            return self._labels(self._logits(data, self.model.predictor.network, self.weights)), []
        decoding = SeededDecoding(self.network, Perturbed())
        labels = self._labels(self._logits(data, decoding, self.weights))
        return labels, torch.stack(decoding.pooled).mean(0).tolist()

    def _decodings(self, data: torch.Tensor) -> Iterator[tuple[str, Any]]:
        for kind, perturbed in self.perturbations.items():
            for draw in range(self.draws):
                decoding = SeededDecoding(self.network, perturbed, self.seed + draw)
                yield kind, partial(self._logits, data, decoding, self.weights)
        for kind, networks in self.others.items():
            for weights in networks:
                yield kind, partial(self._logits, data, self.model.predictor.network, weights)

    def _logits(self, data: torch.Tensor, network: nn.Module, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits (C, z, y, x) of the host's sliding window with ``network`` and no mirroring."""
        predictor = self.model.predictor
        own, mirroring = predictor.network, predictor.use_mirroring
        getattr(own, "_orig_mod", own).load_state_dict(weights)
        predictor.network, predictor.use_mirroring = network, False
        try:
            return predictor.predict_sliding_window_return_logits(data)
        finally:
            predictor.network, predictor.use_mirroring = own, mirroring

    def _labels(self, logits: torch.Tensor) -> torch.Tensor:
        """Regions (C, z, y, x) as bool, or classes (z, y, x) as uint8 or int16."""
        if self.model.regions:
            return (logits > 0).cpu()
        return logits.argmax(0).to(torch.uint8 if len(logits) < 256 else torch.int16).cpu()


def class_dice(first: torch.Tensor, second: torch.Tensor, regions: bool) -> list[float]:
    """Dice of each region, or of each class but the background, in two decodings as :class:`Streams` labels them."""
    if regions:
        return [dice(*pair) for pair in zip(first, second, strict=True)]
    present = sorted({*first.unique().tolist(), *second.unique().tolist()} - {0})
    return [dice(first == value, second == value) for value in present]


def adopted(network: Any) -> EncoderDecoder | None:
    """``network`` with an encoder and decoder that can be called apart; None if it has none."""
    network = getattr(network, "_orig_mod", network)
    if isinstance(network, EncoderDecoder):
        return network
    try:
        return EncoderDecoder(network)
    except UnsupportedError:
        return None


def perturbations(model: CasePredictor, trainer: str, configuration: str) -> dict[str, Perturbed]:
    """The perturbations that a method of streams was trained with, by name; empty for any other trainer."""
    method = method_of(trainer)
    if method is None or not issubclass(method, TableMethod):
        return {}
    settings: Any = settings_from_name(trainer)
    if not settings.unsupervised:
        return {}
    predictor = model.predictor
    task = task_of(predictor.plans_manager, configuration, predictor.dataset_json)
    table = method(settings, task)
    found = {STRONG_VIEW: Perturbed(views=training_views(model, trainer, settings.views))}
    return found | {f"{name} dropout": Perturbed(dropout=one) for name, one in table.perturbations().items()}


def training_views(model: CasePredictor, trainer: str, intensity: str) -> WeakStrongViews:
    """The transforms that made strong views in the training, without geometry."""
    planned = model.predictor.configuration_manager
    transforms = trainer_class(trainer).get_training_transforms(
        planned.patch_size, (0, 0), None, (), False, use_mask_for_norm=planned.use_mask_for_norm
    )
    authors = authors_intensity_transforms(len(planned.patch_size)) if intensity == "authors" else None
    return WeakStrongViews(transforms, authors, strong_views=1)
