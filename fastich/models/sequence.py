"""Slice context: a bidirectional GRU over the slices of one study, and a study decision beside its slice outputs.

A bleed spans slices and artefacts rarely do, which is what the winners of RSNA 2019 gained most from. The network sees
what the CNN said of each slice (embedding and logits), what it said of the study as a whole (largest logits, number of
slices of each label), and the distances between slices in mm. It starts as the CNN's own answer, for its last layers
are zero: slice logits are the CNN's and study logits their maximum. 1 ms a study on one core, next to seconds for the
CNN. Several of them, each with weights of its own, are one network too: the mean of what they say, at the cost of each.

Source: Wang et al., "A deep learning algorithm for automatic detection and classification of acute intracranial
hemorrhages in head CT scans", NeuroImage: Clinical 32 (2021) 102785, sections 2.3 and 2.4.
Shapes: B studies, L slices of the longest, C embedding channels, K labels, P projected channels, D hidden channels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastich.labels import NUM_LABELS

VARIANTS = ("gru", "difference")
"""``gru`` sees each slice; ``difference`` also how it differs from the one before and the one after."""
NUM_GAP_FEATURES = 4
WIDE_PARTS = 2
"""Largest logit and number of slices, of each label (``study_wide``)."""
GAP_SCALE_MM = 5.0
"""A usual distance between slices of head CT, so that the feature is near 1."""
LOGIT_SCALE = 4.0
"""A logit of a sure CNN, so that logits stand beside the other features at their size."""
MOST_GAP_MM = 50.0
"""A larger distance says no more than this one: the slices do not belong together."""


class SequenceOutput(NamedTuple):
    """Logits: ``slices`` [B, L, K], ``study`` [B, K], and ``auxiliary`` [B, L, K], made before the GRU."""

    slices: Tensor
    study: Tensor
    auxiliary: Tensor


class SequenceModel(nn.Module):
    """What a CNN said of each slice of a study -> what the study says of each slice, and of itself."""

    def __init__(
        self,
        embedding_size: int,
        *,
        variant: str = "gru",
        projection_size: int = 128,
        hidden_size: int = 96,
        dropout: float = 0.3,
    ) -> None:
        """Build the network with random weights from torch's generator; its outputs start as the CNN's (see above).

        Raises:
            ValueError: there is no such variant.
        """
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant: expected {' or '.join(VARIANTS)}, found {variant!r}")
        self.variant, self.embedding_size = variant, embedding_size
        parts = 3 if variant == "difference" else 1
        self.norm = nn.LayerNorm(embedding_size)
        self.project = nn.Linear(parts * embedding_size, projection_size)
        self.dropout = nn.Dropout(dropout)
        self.auxiliary = nn.Linear(projection_size, NUM_LABELS)
        given = projection_size + (parts + WIDE_PARTS) * NUM_LABELS + NUM_GAP_FEATURES
        self.onward = nn.GRU(given, hidden_size, batch_first=True)
        self.backward_ = nn.GRU(given, hidden_size, batch_first=True)
        self.slice_head = nn.Linear(2 * hidden_size, NUM_LABELS)
        self.attention = nn.Linear(2 * hidden_size, 1)
        self.study_head = nn.Linear(4 * hidden_size, NUM_LABELS)
        for start_at_zero in (self.slice_head, self.study_head):
            nn.init.zeros_(start_at_zero.weight)
            nn.init.zeros_(start_at_zero.bias)

    def forward(self, embedding_BLC: Tensor, logit_BLK: Tensor, gap_mm_BL: Tensor, mask_BL: Tensor) -> SequenceOutput:
        """Look at whole studies.

        Args:
            embedding_BLC: float32, the CNN's pooled features, slices in order.
            logit_BLK: float32, the CNN's logits.
            gap_mm_BL: float32, distance from the slice before along the normal; NaN where unknown, as at the first.
            mask_BL: bool, true for slices, false for the padding behind them; each study has a slice.
        """
        embedding_BLC = self.norm(embedding_BLC)
        if self.variant == "difference":
            embedding_BLC = _with_differences(embedding_BLC, mask_BL)
            seen_BLK = _with_differences(logit_BLK, mask_BL)
        else:
            seen_BLK = logit_BLK
        projected_BLP = torch.relu(self.project(self.dropout(embedding_BLC)))
        wide_BLK2 = study_wide(logit_BLK, mask_BL).unsqueeze(1).expand(-1, logit_BLK.shape[1], -1)
        gaps = gap_features(gap_mm_BL, mask_BL)
        given = torch.cat([projected_BLP, seen_BLK / LOGIT_SCALE, wide_BLK2 / LOGIT_SCALE, gaps], dim=2)
        hidden_BLD = self.dropout(self._both_ways(given, mask_BL))
        slices_BLK = logit_BLK + self.slice_head(hidden_BLD)
        return SequenceOutput(
            slices=slices_BLK,
            study=self._study(hidden_BLD, slices_BLK, mask_BL),
            auxiliary=self.auxiliary(projected_BLP),
        )

    def _both_ways(self, given: Tensor, mask_BL: Tensor) -> Tensor:
        """Hidden states [B, L, 2 D]: padding stands behind the slices, so neither direction has met it before them."""
        turned = reverse_slices(given, mask_BL)
        onward, _ = self.onward(given)
        backward, _ = self.backward_(turned)
        return torch.cat([onward, reverse_slices(backward, mask_BL)], dim=2)

    def _study(self, hidden_BLD: Tensor, slices_BLK: Tensor, mask_BL: Tensor) -> Tensor:
        """Study logits [B, K]: the largest slice logit, corrected by what attention and the largest state see."""
        out = ~mask_BL.unsqueeze(2)
        weight = torch.softmax(self.attention(hidden_BLD).masked_fill(out, -1e4), dim=1)
        pooled = torch.cat([(weight * hidden_BLD).sum(dim=1), hidden_BLD.masked_fill(out, -1e4).amax(dim=1)], dim=1)
        study_BK: Tensor = slices_BLK.masked_fill(out, -1e4).amax(dim=1) + self.study_head(pooled)
        return study_BK


class SequenceEnsemble(nn.Module):
    """Sequence models over the same CNN, as one: their mean logits. Each learns by itself (``study_epoch.learn``)."""

    def __init__(self, members: Sequence[SequenceModel]) -> None:
        """``members``, at least one, keep their weights."""
        super().__init__()
        self.members = nn.ModuleList(members)
        self.variant, self.embedding_size = members[0].variant, members[0].embedding_size

    def forward(self, embedding_BLC: Tensor, logit_BLK: Tensor, gap_mm_BL: Tensor, mask_BL: Tensor) -> SequenceOutput:
        """As ``SequenceModel.forward``."""
        said = [member(embedding_BLC, logit_BLK, gap_mm_BL, mask_BL) for member in self.members]
        return SequenceOutput(*(torch.stack(parts).mean(dim=0) for parts in zip(*said, strict=True)))


SequenceNetwork = SequenceModel | SequenceEnsemble
"""One sequence model, or several as one."""


def members_of(network: SequenceNetwork) -> list[SequenceModel]:
    """The sequence models that ``network`` is the mean of."""
    return [network] if isinstance(network, SequenceModel) else list(network.members)  # type: ignore[arg-type]


def study_wide(logit_BLK: Tensor, mask_BL: Tensor) -> Tensor:
    """What the CNN says of the whole study: its largest logits, and how many slices it sees of each label [B, 2 K].

    The kind of a bleed is that of its study far more often than that of one slice, and a GRU forgets within slices.
    """
    inside = mask_BL.unsqueeze(2)
    largest = logit_BLK.masked_fill(~inside, -1e4).amax(dim=1)
    return torch.cat([largest, (torch.sigmoid(logit_BLK) * inside).sum(dim=1)], dim=1)


def gap_features(gap_mm_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Distance to the slice before and after, scaled, 0 where unknown, each beside whether it is known: [B, L, 4]."""
    before_BL = torch.where(mask_BL, gap_mm_BL, torch.nan)
    after_BL = torch.cat([before_BL[:, 1:], torch.full_like(before_BL[:, :1], torch.nan)], dim=1)
    both = torch.stack([before_BL, after_BL], dim=2)
    known = ~torch.isnan(both)
    scaled = torch.where(known, both, 0.0).clamp(0.0, MOST_GAP_MM) / GAP_SCALE_MM
    return torch.cat([scaled, known.to(scaled.dtype)], dim=2)


def reverse_slices(values_BLx: Tensor, mask_BL: Tensor) -> Tensor:
    """The slices of each study in reverse order, its padding still behind them."""
    length_B1 = mask_BL.sum(dim=1, keepdim=True)
    place_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
    source_BL = torch.where(mask_BL, length_B1 - 1 - place_L, place_L)
    return torch.gather(values_BLx, 1, source_BL.unsqueeze(2).expand(values_BLx.shape))


def _with_differences(values_BLx: Tensor, mask_BL: Tensor) -> Tensor:
    """The values, then what changes from the slice before and to the slice after; 0 at the ends: [B, L, 3 x]."""
    step = (values_BLx[:, 1:] - values_BLx[:, :-1]) * mask_BL[:, 1:].unsqueeze(2).to(values_BLx.dtype)
    none = torch.zeros_like(values_BLx[:, :1])
    return torch.cat([values_BLx, torch.cat([none, step], dim=1), torch.cat([step, none], dim=1)], dim=2)
