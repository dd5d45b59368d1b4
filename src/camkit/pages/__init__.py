"""Pages that open from the disk: one base, one stylesheet, one script, and nothing from elsewhere."""
