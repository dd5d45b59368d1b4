"""How fast explainers are, how far they agree, and whether their maps tell the truth, in one table.

From top to bottom: `stats`, medians and intervals; `document`, the one source of every table; `timing`,
interleaved rounds; `request`, what to measure; `environment`, what it was measured on; `rows`, who takes
part; `scenes`, on which images; `survey`, maps and their scores; `run`, all together; `conditions` for
`--fail-if`; `compare` for two documents; `report`, Markdown and HTML from one.
"""
