"""Measure ingredients on examples, for searches and for merge methods that weigh by the results."""
