"""Measurements of this machine: what decoding costs here, beside other libraries, and whether it leaks."""
