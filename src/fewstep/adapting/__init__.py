"""From a run to a model of the user's own classes of pictures, or their own few examples."""
