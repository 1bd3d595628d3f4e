"""Pages of results, made from lines of `results.jsonl`."""
