"""Rooms in perspective, empty and furnished: what the demo's staging model learns from and is judged by."""
