"""camkit in the browser: `camkit explore`.

`command` reads the command line, `session` and `models` hold what there is, `asking` computes what the page
wants to know, `jobs` does one thing of the model at a time, `security` decides who is answered, `app` joins
them, and `server` listens. The page itself is in `templates` and `static`.
"""
