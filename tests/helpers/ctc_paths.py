"""The label sequences of CTC by brute force."""

import math
from collections import defaultdict
from itertools import groupby, product


def all_sequences(logits):
    """Log probability of each label sequence, summed over all paths of (T, V)."""
    log_probs = logits.double().log_softmax(-1).tolist()
    found = defaultdict(float)
    for path in product(range(len(log_probs[0])), repeat=len(log_probs)):
        labels = tuple(label for label, _ in groupby(path) if label)
        found[labels] += math.exp(sum(frame[label] for frame, label in zip(log_probs, path, strict=True)))
    return {labels: math.log(total) for labels, total in found.items() if total}
