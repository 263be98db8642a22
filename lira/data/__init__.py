"""The ground: the pool of examples that membership is drawn over, and where it comes from."""

from lira.data.dataset import Dataset

__all__ = ["Dataset"]
