"""Curation: attributes beside documents, rules over attributes, duplicates, the held-out part, and the report."""
