"""Training: one loop for every reference model, and what a run leaves behind. Knows no evaluation."""
