"""What is measured of each ingredient on examples, for merge methods that weigh by it."""
