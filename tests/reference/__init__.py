"""Retro's independent reference in plain NumPy: see README.md in this folder."""
