"""Tilth: raw data to a pretrained, measured and exported model, on one road."""

__version__ = "0.1.0"
