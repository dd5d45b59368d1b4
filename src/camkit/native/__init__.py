"""The native explainer."""
