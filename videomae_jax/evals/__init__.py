"""Evaluators: run inside training or alone, on `represent`, `predict` and `loss` only."""
