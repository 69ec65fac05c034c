"""Contributions into one outer step: weights, rules, outer optimizers, the pipeline."""
