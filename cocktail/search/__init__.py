"""Find mixing weights from a few examples, and say honestly what they gain and cost."""
