"""Networks and nothing else: one file per architecture, and the table of models."""
