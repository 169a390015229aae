"""One trace of a torch network: its graph, layers and states, and how it is run."""
