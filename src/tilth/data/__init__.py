"""Data: records and their readers, tokenizers, pools of units, packed streams."""
