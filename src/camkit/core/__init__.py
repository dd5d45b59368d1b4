"""What every explainer needs of a model: layers, layouts, hooks, targets, and one call around them all."""
