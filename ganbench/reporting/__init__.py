"""Reporting: what people and CI read. Results, tables, comparisons and the regression check; no torch at import."""
