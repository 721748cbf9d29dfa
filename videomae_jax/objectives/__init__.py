"""Recipes: one module per family."""
