"""Tuning: try the configurations of the search spaces, and keep what is fastest for each weight and range of M."""
