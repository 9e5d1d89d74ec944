"Fine-tune language models in notebooks, and end with a report that stands up."
__version__ = "0.3.0"
