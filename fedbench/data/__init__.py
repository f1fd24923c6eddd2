"""The data of a run: images as uint8 tensors, their partition over clients, and their augmented views."""

from fedbench.data.dataset import Dataset, data_source, load_dataset
from fedbench.data.partitions.partition import partition
from fedbench.data.views.augment import Views, build_views, normalize

SHIPPED = frozenset({"digits"})  # data sets that are installed with fedbench's dependencies

__all__ = ["SHIPPED", "Dataset", "Views", "build_views", "data_source", "load_dataset", "normalize", "partition"]
