"""The layered method: rows of convolutions and linear layers matched one layer after another."""
