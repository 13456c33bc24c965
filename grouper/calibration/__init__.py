"""Calibration text, and the statistics of layer inputs that are measured on it."""
