"""What the README claims, as ratios that anyone can run again: ``make bench``, ``make bench-styles``."""
