"""Algorithms 2 and 3: meta-parameters, an outer optimizer and one step."""
