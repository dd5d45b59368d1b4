"""How fast explainers are, how far they agree, and whether their maps tell the truth, in one table.

From top to bottom: `stats`, intervals and verdicts; `document`, the one source of every table; `timing`,
interleaved rounds; `request`, what to measure; `environment`, what it was measured on; `rows`, who takes
part; `scenes`, on which images; `measures`, by which metrics; `survey`, maps and their scores; `latency`,
in one process or several; `run`, all together; `conditions` for `--fail-if`; `compare` for two documents;
`report`, Markdown and HTML from one.
"""
