"""The tables of an evaluation: results of each class, and which class is taken for which."""

from __future__ import annotations

from app.core.state import Run


def report_evaluation(run: Run) -> None:
    """Hand `phase/per_class` and `phase/confusion` (truth in rows) of `run.evaluation` to the visualizer.

    A table that is not configured is left out; on other ranks than the main one nothing happens.
    """
    evaluation, step = run.evaluation, run.state.progress.step
    if evaluation is None or not run.world.is_main:
        return
    if evaluation.per_class:
        columns = list(evaluation.per_class[0])
        rows = [[row[column] for column in columns] for row in evaluation.per_class]
        run.visualizer.table(f"{run.phase}/per_class", columns, rows, step)
    if evaluation.confusion is not None:
        counts = evaluation.confusion.tolist()
        rows = [[name, *row] for name, row in zip(evaluation.classes, counts, strict=True)]
        run.visualizer.table(f"{run.phase}/confusion", ["truth", *evaluation.classes], rows, step)
