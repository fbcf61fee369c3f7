"""Losses of the part segmenters."""
