"""Evaluation: features are extracted once, and every metric is handed what it looks at. Knows no training."""
