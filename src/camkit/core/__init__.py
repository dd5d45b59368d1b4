"""What every explainer needs from a model: layers, layouts, hooks, targets, and the call around them."""
