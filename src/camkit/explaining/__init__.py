"""From photographs to folders of results."""
