"""Numbers that judge generated pictures: each a `torchmetrics.Metric` over pictures and captions,
exact over any number of ranks and any batch size."""

from ldm.metrics.clip_score import CLIPScore, Retrieval, clip_scores
from ldm.metrics.copies import Diversity, Memorisation, nearest_distances
from ldm.metrics.features import Features, TextAndImageFeatures, to_bytes
from ldm.metrics.frechet import FrechetDistance, frechet_distance
from ldm.metrics.group import MetricGroup
from ldm.metrics.inception_score import InceptionScore
from ldm.metrics.kernel import ClipDiscrepancy, KernelDistance
from ldm.metrics.manifold import Coverage, Density, Precision, Recall
from ldm.metrics.reconstruction import PSNR, SSIM, LearnedDistance
from ldm.metrics.reference import Reference, cache_folder, load_reference, reference_path
from ldm.metrics.sample_metric import SampleMetric
from ldm.metrics.statistics import reference_statistics

__all__ = [
    "PSNR",
    "SSIM",
    "CLIPScore",
    "ClipDiscrepancy",
    "Coverage",
    "Density",
    "Diversity",
    "Features",
    "FrechetDistance",
    "InceptionScore",
    "KernelDistance",
    "LearnedDistance",
    "Memorisation",
    "MetricGroup",
    "Precision",
    "Recall",
    "Reference",
    "Retrieval",
    "SampleMetric",
    "TextAndImageFeatures",
    "cache_folder",
    "clip_scores",
    "frechet_distance",
    "load_reference",
    "nearest_distances",
    "reference_path",
    "reference_statistics",
    "to_bytes",
]
