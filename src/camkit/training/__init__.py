"""Trainings, their folders and reports."""
