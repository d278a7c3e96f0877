"""Distributions of tasks: where support and query sets come from."""
