"""Measurements: a figure is printed, not judged. What is tested is the report that is made of them."""
