"""Whether maps agree, tell the truth about the model, and point at the object: pure functions, and plugins.

Every function takes a batch of raw maps `[B, h, w]` and gives float `[B]` on the device of the maps; NaN
means "not defined" (a constant map, an empty truth), never a zero and never a hit. Whatever is random takes
a seed and does not touch the global generators.

From top to bottom: `basics`; `agreement`, `complexity`, `localisation`; `imputation`, `faithfulness` and
`sanity`, which run the model; `controls`, maps that know nothing; `truth` and `shapes`, where the evidence
is; `builtin`, all this as plugins; `measure`, which lets any plugin score a batch.
"""
