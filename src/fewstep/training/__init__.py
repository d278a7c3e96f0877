"""The outer loop, its run folder, and evaluation."""
