"""Numbers that judge generated pictures: each a `torchmetrics.Metric` over pictures and captions,
exact over any number of ranks and any batch size."""

from ldm.metrics.clip_score import CLIPScore, Retrieval, clip_scores
from ldm.metrics.features import Features, TextAndImageFeatures, to_bytes
from ldm.metrics.frechet import FrechetDistance, frechet_distance
from ldm.metrics.reference import Reference, load_reference
from ldm.metrics.sample_metric import SampleMetric

__all__ = [
    "CLIPScore",
    "Features",
    "FrechetDistance",
    "Reference",
    "Retrieval",
    "SampleMetric",
    "TextAndImageFeatures",
    "clip_scores",
    "frechet_distance",
    "load_reference",
    "to_bytes",
]
