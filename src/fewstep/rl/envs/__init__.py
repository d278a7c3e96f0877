"""Families of environments whose members are the tasks."""
