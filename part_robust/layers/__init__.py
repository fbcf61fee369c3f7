"""Building blocks without state of their own: boxes, encodings, attention."""
