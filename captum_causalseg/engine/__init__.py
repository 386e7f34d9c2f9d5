"""Interventions on any tensor slot: which unit gets which donor, and what the scores say. Knows no model and no image."""
