"""Measures of pictures, each a torchmetrics.Metric that is exact over ranks."""
