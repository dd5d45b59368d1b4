"""How fast explainers are, how far they agree, and whether their maps tell the truth, in one table.

From top to bottom: `statistics`, intervals and verdicts; `results`, what `bench.json` holds; `typed_json`,
which reads and writes it; `bench_json`, its figures and tables; `timing`, interleaved rounds; `request`,
what to measure; `environment`, what it was measured on; `entrants`, the rows; `scenes`, on which
images; `metric_choice`, by which metrics; `survey`, maps and their scores; `latency`, in one process or
several; `examples`, pictures of maps; `runner`, all together; `conditions` for `--fail-if`; `compare` for
two documents; `significance`, whether one is better than a control; `conclusion`, what was found in words;
`bench_report` and `page_formats`, one report as Markdown and HTML.
"""
