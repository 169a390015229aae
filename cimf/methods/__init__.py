"""Methods that make a network or its implicit model sparse; each is one entry of a table."""
