"""Part segmenters."""
