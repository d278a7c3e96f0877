"""Plain networks, with no meta-learning in them."""
