"""tune_dd: which dropout, for which model, text and budget."""

__version__ = "0.1.0"
