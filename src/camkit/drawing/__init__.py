"""Pictures: overlays, sheets and charts."""
