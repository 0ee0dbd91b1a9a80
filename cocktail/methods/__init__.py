"""Ways to combine the tensors of several ingredients into one."""
