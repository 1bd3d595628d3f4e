"""Masks of spans of frames (Baevski et al. 2020), for masked pretraining and as augmentation of what is projected."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pelasr.errors import PelasrError


def time_mask(
    lens: Tensor, prob: float, length: int, min_masks: int = 0, drawn: torch.Generator | None = None
) -> Tensor:
    """Which frames are masked: bool (B, T) on the CPU for frames (B,), T the most of them.

    Of an utterance of n frames `prob * n / length` spans of `length` frames are masked, rounded up or down at random
    and at least `min_masks` where as many fit side by side; their beginnings are all different, so that spans may
    overlap and fewer than `prob` of the frames be masked. One shorter than a span has no mask. Drawn by torch's
    generator of the CPU, or another one.
    """
    lens = lens.cpu()
    frames = int(lens.max())
    rounding = torch.rand(len(lens), device="cpu", generator=drawn)
    spans = (prob * lens / length + rounding).long().clamp(min=min_masks).minimum(lens // length)
    if frames < length:
        return torch.zeros(len(lens), frames, dtype=torch.bool)
    starts = torch.arange(frames - length + 1)
    order = torch.rand(len(lens), len(starts), device="cpu", generator=drawn)
    order = order.masked_fill(starts > (lens - length)[:, None], 2.0).argsort(dim=1)
    begins = torch.zeros(order.shape).scatter_(1, order, (starts < spans[:, None]).float())
    return F.max_pool1d(F.pad(begins, (length - 1, length - 1)), length, stride=1) > 0


class SpanMasks:
    """SpecAugment of a pretrained encoder's own: spans of projected frames are replaced, spans of channels zeroed.

    Args:
        embedding: what a masked frame is replaced with (D,).
        mask_time_prob, mask_time_length, mask_time_min_masks: of frames; see `time_mask`.
        mask_feature_prob, mask_feature_length, mask_feature_min_masks: of channels.
    """

    def __init__(
        self,
        embedding: Tensor,
        mask_time_prob: float = 0.05,
        mask_time_length: int = 10,
        mask_time_min_masks: int = 2,
        mask_feature_prob: float = 0.0,
        mask_feature_length: int = 10,
        mask_feature_min_masks: int = 0,
    ):
        self.embedding = embedding
        self.time = mask_time_prob, mask_time_length, mask_time_min_masks
        self.feature = mask_feature_prob, mask_feature_length, mask_feature_min_masks
        for name, (prob, length, min_masks) in (("time", self.time), ("feature", self.feature)):
            if not 0 <= prob <= 1:
                raise PelasrError(f"mask_{name}_prob: {prob} is not between 0 and 1")
            if length < 1 or min_masks < 0:
                raise PelasrError(
                    f"mask_{name}_length: {length} is below 1, or mask_{name}_min_masks: {min_masks} below 0"
                )

    def __call__(self, x: Tensor, lens: Tensor) -> Tensor:
        """Projected frames (B, T, D), frames (B,) to the same with masks."""
        if self.time[0]:
            mask = time_mask(lens, *self.time)
            mask = F.pad(mask, (0, x.shape[1] - mask.shape[1])).to(x.device)
            x = torch.where(mask[..., None], self.embedding.to(x.dtype), x)
        if self.feature[0]:
            mask = time_mask(torch.full_like(lens, x.shape[2]), *self.feature).to(x.device)
            x = x.masked_fill(mask[:, None], 0.0)
        return x
