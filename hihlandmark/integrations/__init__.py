"""Detectors as steps of other systems, a module for each."""
