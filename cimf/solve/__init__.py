"""How row problems are solved."""
