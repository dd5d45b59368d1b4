"""Large runs: parts of the photographs, done by an engine, each with a table of its own."""
