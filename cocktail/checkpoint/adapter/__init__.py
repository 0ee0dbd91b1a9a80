"""PEFT adapters as ingredients: added to their base while it is read."""
