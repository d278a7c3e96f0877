"""Experiments as data: recipes, and building what they describe."""
