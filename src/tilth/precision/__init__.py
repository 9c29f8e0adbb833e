"""Number formats, group quantizers, low-precision training, and compressed weights."""
