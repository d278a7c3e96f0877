"""Model-agnostic meta-learning as pure functions of parameters: Algorithm 1 and its relatives."""
