"""Whether maps agree, tell the truth about the model, and point at the object: pure functions, and plugins.

Every function takes a batch of raw maps `[B, h, w]` and gives float `[B]` on the device of the maps; NaN
means "not defined" (a constant map, an empty truth), never a zero and never a hit. Whatever is random takes
a seed and does not touch the global generators.

A file for each category, of faithfulness three; each metric stands beside its function, which
`function_metric` calls. `map_tools` and `evaluation` are what several need, `imputation` fills in pixels,
`measure` lets any plugin score a batch.
"""
