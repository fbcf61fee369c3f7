"""Class heads."""
