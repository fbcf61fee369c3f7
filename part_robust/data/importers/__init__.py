"""Imports of users' annotations: one pipeline, and one short reader for each format."""
