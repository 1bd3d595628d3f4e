"""Error rates, BLEU, their intervals, and the lines of `results.jsonl`."""
