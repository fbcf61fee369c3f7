"""Preparation of public data sets and import of users' annotations."""
