"""How well pictures fit their captions, by a network that places both in one space."""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ldm.metrics.exact import on_grid
from ldm.metrics.features import TextAndImageFeatures
from ldm.metrics.sample_metric import SampleMetric
from ldm.types import Image


def clip_scores(
    clip: TextAndImageFeatures, images: Image, captions: Sequence[str]
) -> Float[Tensor, "b"]:
    """100 max(cos(picture, caption), 0) for each picture, float64 (Hessel et al. 2021, eq. 1, with
    the weight 100 that the field reports in place of 2.5)."""
    pictures = normalize(clip(images).double(), dim=1)
    texts = normalize(clip.texts(captions).double(), dim=1)
    return 100 * (pictures * texts).sum(1).clamp(min=0)


class CLIPScore(SampleMetric):
    """Mean of `clip_scores` over all pictures, in [0, 100]; more is better."""

    higher_is_better = True
    total: Tensor

    def __init__(self, clip: TextAndImageFeatures) -> None:
        super().__init__(f"clip_score/{clip.name}")
        self.clip = clip
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, images: Image, captions: list[str]) -> None:
        """Adds the pictures' scores."""
        self.total += on_grid(clip_scores(self.clip, images, captions)).sum()

    def compute(self) -> Float[Tensor, ""]:
        """The mean score, float64."""
        return self.total / self.judged()


class Retrieval(SampleMetric):
    """Share of pictures whose own caption is among the `k` that fit best, of all captions of the
    set (recall at k, in [0, 1]).

    Equal captions count once. Chance is k over the number of different captions, so only sets of
    equal captions can be compared.
    """

    higher_is_better = True
    pictures: list[Tensor]
    texts: list[Tensor]
    labels: list[Tensor]

    def __init__(self, clip: TextAndImageFeatures, k: int = 1) -> None:
        if k < 1:
            raise ValueError(f"recall at k={k} counts nothing: set k to 1 or more")
        super().__init__(f"recall@{k}/{clip.name}")
        self.clip = clip
        self.k = k
        self.keep_rows("pictures", clip.width)
        self.keep_rows("texts", clip.width)
        self.keep_rows("labels", dtype=torch.int64)

    def add(self, images: Image, captions: list[str]) -> None:
        """Keeps both embeddings of each picture, and which caption it has."""
        self.pictures.append(normalize(self.clip(images), dim=1))
        self.texts.append(normalize(self.clip.texts(captions), dim=1))
        self.labels.append(torch.tensor([caption_label(c) for c in captions], device=self.device))

    def compute(self) -> Float[Tensor, ""]:
        """Recall at k, float64."""
        count = self.judged()
        labels = self.rows("labels")
        different, group = torch.unique(labels, return_inverse=True)
        # One embedding a caption, whatever rank it came from: the mean over its copies.
        texts = torch.zeros(
            len(different), self.clip.width, dtype=torch.float64, device=self.device
        )
        texts.index_add_(0, group, on_grid(self.rows("texts")))
        texts = normalize(texts, dim=1)
        found = torch.zeros((), dtype=torch.float64, device=self.device)
        for pictures, own in zip(
            torch.split(self.rows("pictures").double(), 1024),
            torch.split(group, 1024),
            strict=True,
        ):
            fit = pictures @ texts.T
            better = (fit > fit.gather(1, own[:, None])).sum(1)
            found += (better < self.k).sum()
        return found / count


def caption_label(caption: str) -> int:
    """63 bits that stand for a caption, equal in every process."""
    return int.from_bytes(hashlib.sha256(caption.encode()).digest()[:8], "big") >> 1
