"""One meta-iteration of fewstep beside its peers: same model, tasks, algorithm and precision."""
