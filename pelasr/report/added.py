"""The part of a results page on languages that were added later, and on what that did to the others."""

from pelasr.report.grid import Grid, Measure
from pelasr.report.sections import markdown, parameters


def sections(grid: Grid, measure: Measure) -> list[str]:
    """A section for each language that was scored and is outside the mean; nothing without one."""
    parts = []
    for new in grid.columns[len(grid.languages) + ("mean" in grid.columns) :]:
        rows = [name for name in grid.experiments if grid.get(name, new, measure.metric)]
        if rows:
            parts += [f"## Added later: {new}", *_table(grid, measure, new, rows), *_changes(grid, new)]
    return parts


def _table(grid: Grid, measure: Measure, new: str, names: list[str]) -> list[str]:
    """What each experiment is for the new language and for the old ones."""
    old = [column for column in grid.columns if column == "mean" or column in grid.languages]
    rows = []
    for name in names:
        line = grid.get(name, new, measure.metric)
        cells = [measure.number(line), measure.interval(line), parameters([line], "trainable")]
        others = [measure.number(grid.get(name, column, measure.metric)) for column in old]
        rows.append([name, grid.experiments[name], *cells, *others])
    text = (
        f"{measure.name} of {new}, which the backbone was not trained on, and of the languages that it was trained on,"
        f" with the same model. Without adapters {new} is decoded zero-shot: with the shared tokens, and the mean of"
        " the language vectors if the backbone has them."
    )
    headers = ["", "experiment", new, "95 % interval", "trainable parameters"]
    return [text, markdown(headers + [grid.headings[column] for column in old], rows)]


def _changes(grid: Grid, new: str) -> list[str]:
    """What was measured on old languages with and without the new one's pack."""
    parts = []
    for name in grid.experiments:
        lines = grid.whole(name, f"changed_by_{new}")
        logits = grid.whole(name, f"logits_changed_by_{new}")
        if not lines or not logits:
            continue
        parts.append(
            f"{name} decoded its {sum(line['utterances'] for line in lines)} utterances of"
            f" {' '.join(grid.languages)} in batches mixed with {new}, without the pack of {new} and with it:"
            f" {sum(line['value'] for line in lines):.0f} hypotheses changed, and the largest difference of a logit is"
            f" {max(line['value'] for line in logits):g}."
        )
    return parts
