"""Tasks, scoring, held-out bits per byte and what it is measured against."""
