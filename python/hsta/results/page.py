"""The report of an evaluation as one HTML page that needs nothing else: no script, no other file, no network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from ..generated.mark import NO_EVIDENCE
from .attention import Example
from .attention_drawing import over_space, over_time
from .bootstrap import Subjects
from .described import together
from .learning_curves import Curve, mean_curve
from .metrics import Scores
from .score_plots import confusion_matrix, learning_curves, svg, unit_f1
from .style import STYLE

NAMES = {"uf1": "UF1", "uar": "UAR", "accuracy": "accuracy", "mean_f1": "mean F1"}


def page(
    values: dict, each: Sequence[Subjects], curves: Sequence[Mapping[str, Curve]], examples: Sequence[Example]
) -> str:
    """HTML of what `describe` gave and was given; all text in it is escaped."""
    scores = together(each).scores
    folds = "all folds" if len(each) == 1 else f"all folds and {len(each)} seeds"
    title = f"{values.get('dataset', 'Evaluation')}: {', '.join(_headline(values))}"
    if len(each) > 1:
        title += f" over {len(each)} seeds"
    sections = [_section("scores", "Scores", _warnings(values) + _scores(values))]
    if len(each) > 1:
        sections.append(_section("seeds", "Seeds", _by_seed(values)))
    if values["by_dataset"]:
        sections.append(_section("data-sets", "Data sets", _by_dataset(values)))
    if isinstance(scores, Scores):
        picture = svg(confusion_matrix(scores, ""))
        caption = f"Clips by true class (rows) and predicted class (columns), of {folds} together."
        sections.append(_section("confusion-matrix", "Confusion matrix", _figure(picture, caption)))
        sections.append(_section("classes", "Classes", _per_class(values["per_class"], "class")))
    else:
        picture = _figure(svg(unit_f1(scores, "")), f"F1 of each action unit, of the predictions of {folds} together.")
        sections.append(_section("action-units", "Action units", picture + _per_class(values["per_unit"], "unit")))
    sections.append(_section("subjects", "Subjects", _by_subject(values)))
    if any(curves):
        sections.append(_section("learning-curves", "Learning curves", _learning_curves(curves)))
    if examples:
        sections.append(_section("attention", "Attention", _attention(values, examples)))
    sections.append(_section("protocol", "Protocol", _protocol(values)))
    sections.append(_section("made-with", "Made with", _made_with(values)))
    if values["notes"] is not None and values["faults"] is not None:
        sections.append(_section("data", "The data", _data(values)))
    if values["left_out"]:
        sections.append(_section("left-out", "What the folder lacks", _list(values["left_out"])))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + "".join(sections)
        + "</body>\n</html>\n"
    )


def _headline(values: dict) -> list[str]:
    return [f"{NAMES[name]} {_number(told)}" for name, told in values["scores"].items() if name != "accuracy"]


def _warnings(values: dict) -> str:
    told = []
    if values.get("generated_data"):
        told.append(f"Made from {NO_EVIDENCE}.")
    if values.get("shuffled_labels"):
        told.append("A control: labels were shuffled in training.")
    if values.get("protocol") == "authors-folds":
        told.append("Folds may train on people whom they test.")
    return "".join(f'<p class="warning">{escape(sentence)}</p>\n' for sentence in told)


def _scores(values: dict) -> str:
    level = f"{values['bootstrap']['level']:.0%} interval over subjects"
    rows = [(NAMES[name], _number(told), _interval(told)) for name, told in values["scores"].items()]
    guessed = "telling every unit of every clip" if "per_unit" in values else "guessing"
    told = f"{values['clips']:,} clips of {values['subjects']:,} subjects; {guessed} gives {values['chance']:.3f}."
    return (
        f"<p>{told}</p>\n"
        + _table(("score", "mean ± deviation" if "by_seed" in values else "value", level), rows)
        + f'<p class="note">{escape(values["intervals_in_words"])}</p>\n'
    )


def _by_dataset(values: dict) -> str:
    parts = values["by_dataset"]
    rows = [
        (name, part["subjects"], part["clips"], *(f"{_number(t)} {_interval(t)}" for t in part["scores"].values()))
        for name, part in parts.items()
    ]
    told = "Each data set's part of the same predictions; of each its own subjects are drawn."
    return f"<p>{told}</p>\n" + _table(("data set", "subjects", "clips", *map(NAMES.get, values["scores"])), rows)


def _by_seed(values: dict) -> str:
    rows = [
        (seed, *(f"{_number(told)} {_interval(told)}" for told in one["scores"].values()))
        for seed, one in values["by_seed"].items()
    ]
    header = ("seed", *(f"{NAMES[name]} [interval]" for name in values["scores"]))
    return f"<p>{escape(values['seeds_in_words'])}</p>\n" + _table(header, rows)


def _learning_curves(each: Sequence[Mapping[str, Curve]]) -> str:
    kept = [curves for curves in each if curves]
    if len(each) == 1:
        return _figure(svg(learning_curves(kept[0])), f"Mean loss of each epoch, of {len(kept[0])} folds.")
    by_seed = {str(place): mean_curve(curves.values()) for place, curves in enumerate(kept)}
    caption = f"Mean loss of each epoch over all folds: each of {len(kept)} seeds, and their mean."
    return _figure(svg(learning_curves(by_seed)), caption)


def _attention(values: dict, examples: Sequence[Example]) -> str:
    words = "".join(f"<p>{escape(sentence)}</p>\n" for sentence in values["attention_in_words"])
    return words + "".join(map(_example, values["attention"], examples))


def _example(told: dict, example: Example) -> str:
    moments = "".join(
        f"<div>{picture}<br>{_frames(frames)}<br>{share:.1%}</div>"
        for picture, frames, share in zip(over_space(example), told["moments"], told["over_time"], strict=True)
    )
    curve = svg(over_time(example.attention))
    title = f"{told['chosen_for']}, {'rightly' if told['right'] else 'wrongly'} told ({told['probability']:.1%})"
    about = [f"{told['dataset']} {told['subject']} {told['clip']}", f"true: {told['truth'] or 'none'}"]
    if told["prediction"] != told["chosen_for"]:
        about.append(f"told: {told['prediction']}")
    return (
        f'<figure class="example">\n<h3>{escape(title)}</h3>\n<div class="moments">{moments}\n{curve}</div>\n'
        f"<figcaption>{escape('; '.join(about))}</figcaption>\n</figure>\n"
    )


def _frames(moment: Sequence[int]) -> str:
    first, last = moment[0], moment[-1]
    return f"frame {first}" if first == last else f"frames {first} and {last}"


def _per_class(each: dict, what: str) -> str:
    counts = ("clips", "predicted", "right")
    keys = [key for key in ("f1", "recall") if key in next(iter(each.values()))]
    rows = [
        (name, *(told[count] for count in counts), *(f"{_number(told[key])} {_interval(told[key])}" for key in keys))
        for name, told in each.items()
    ]
    return _table((what, *counts, *(f"{key} [interval]".replace("f1", "F1") for key in keys)), rows)


def _by_subject(values: dict) -> str:
    each = "per_unit" if "per_unit" in values else "per_class"
    figure = "mean_f1" if each == "per_unit" else "accuracy"
    rows = [
        (
            one["dataset"],
            one["subject"],
            one["clips"],
            _number(one["scores"][figure]),
            *(f"{told['right']} of {told['clips']}" if told["clips"] else "" for told in one[each].values()),
        )
        for one in values["by_subject"]
    ]
    seeds = f", in all {len(values['by_seed'])} seeds" if "by_seed" in values else ""
    told = f"Of each class or unit: clips that were told right, of those that show it{seeds}."
    return f"<p>{told}</p>\n" + _table(("data set", "subject", "clips", NAMES[figure], *values[each]), rows)


def _protocol(values: dict) -> str:
    folds = [f"{values['folds']} folds."] if "folds" in values else []
    return "".join(f"<p>{escape(sentence)}</p>\n" for sentence in [*values["protocol_in_words"], *folds])


def _made_with(values: dict) -> str:
    known = [(name, values[name]) for name in ("evaluation", "dataset", "model", "seed", "device") if name in values]
    known = [(name, ", ".join(map(str, told)) if isinstance(told, list) else told) for name, told in known]
    table = _table(("what", "value"), [*known, *values.get("versions", {}).items()], numbers=False)
    if values["arguments"] is None:
        return table
    return table + "<h3>Arguments</h3>\n" + _table(("argument", "value"), _flat(values["arguments"]), numbers=False)


def _flat(values: Mapping, above: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, value in values.items():
        rows += _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else [(f"{above}{name}", value)]
    return rows


def _data(values: dict) -> str:
    lost = f"<p>Clips that faults of the files cost: {values['lost_clips'] or 0}.</p>\n"
    told = [*values["notes"], *values["faults"]]
    return lost + (_list(told) if told else "<p>Nothing was wrong, and there is nothing to note.</p>\n")


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}">\n<h2>{escape(title)}</h2>\n{body}</section>\n'


def _figure(picture: str, caption: str) -> str:
    return f"<figure>\n{picture}\n<figcaption>{escape(caption)}</figcaption>\n</figure>\n"


def _list(sentences: Iterable[str]) -> str:
    return "<ul>\n" + "".join(f"<li>{escape(sentence)}</li>\n" for sentence in sentences) + "</ul>\n"


def _table(header: Sequence[object], rows: Iterable[Sequence[object]], numbers: bool = True) -> str:
    """With ``numbers`` all columns are set to the right but the first, and the subjects' names."""
    right = [numbers and place > 0 and name != "subject" for place, name in enumerate(header)]

    def cells(kind: str, row: Sequence[object]) -> str:
        classes = (' class="number"' if number else "" for number in right)
        told = (f"<{kind}{c}>{escape(str(cell))}</{kind}>" for c, cell in zip(classes, row, strict=True))
        return f"<tr>{''.join(told)}</tr>\n"

    body = "".join(cells("td", row) for row in rows)
    head = cells("th", header)
    kind = "" if numbers else ' class="words"'
    return f'<div class="wide"><table{kind}>\n<thead>{head}</thead>\n<tbody>\n{body}</tbody>\n</table></div>\n'


def _number(told: Mapping) -> str:
    """With the deviation over seeds, where there are several."""
    if told["value"] is None:
        return "undefined"
    deviation = told.get("deviation")
    return f"{told['value']:.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")


def _interval(told: Mapping) -> str:
    ends = told.get("interval")
    if ends is None or None in ends:
        return ""
    return f"[{ends[0]:.3f}, {ends[1]:.3f}]"
