"""What a run leaves behind: folder, provenance, tables, figures, and what the terminal shows."""
