"""Linen modules; nothing outside this package and parallel.py knows that Linen exists."""
