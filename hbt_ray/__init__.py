"""hbt_ray: hybrid batch training of multilingual dense retrievers on Ray."""

__version__ = "0.1.0"
