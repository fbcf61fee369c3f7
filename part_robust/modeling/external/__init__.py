"""Classifiers from elsewhere as class heads: files of a graph, models of timm and torchvision, callables."""
