"""Tables and figures, one module each: `python -m experiments NAME`."""
