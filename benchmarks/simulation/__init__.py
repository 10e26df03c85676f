"""Capacity on paper: traces of arrivals against nodes whose step times were measured or derived."""
