"""Reinforcement learning: environments for many tasks at once, trajectories, policies, and what follows from them."""
