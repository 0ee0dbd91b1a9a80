"""Find mixing weights from a few examples, and report honestly what they gain and cost."""
