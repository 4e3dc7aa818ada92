"""Lower bounds on robustness: which examples no input of the ball can turn, and by how much they are proven."""
