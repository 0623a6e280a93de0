"""``legato datasets``: which datasets can be read and how they must lie; and what is found of one on this machine."""

import sys
from collections import Counter
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from encoders.datasets.corpus import Corpus

app = typer.Typer(add_completion=False)


@app.command(epilog="For example: legato datasets kinetics400:/data/k400")
def datasets(
    what: Annotated[str, typer.Argument(metavar="NAME|NAME:PATH", help="A dataset, and where it lies.")] = "",
    split: Annotated[str, typer.Option(help="Look at these splits only, e.g. train,val or train[:98%].")] = "",
    read: Annotated[bool, typer.Option("--read", help="Decode the beginning of every sample, to find broken ones.")] = (
        False
    ),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, and nothing else.")] = False,
) -> None:
    """List the datasets that can be read with the layout each expects; with a path, what is found there.

    Of a dataset that lies somewhere: samples per split, classes, and what is missing, listed twice or unknown, counted
    and its first cases named; with --read also what cannot be decoded.
    """
    from encoders.datasets.corpus import survey
    from encoders.datasets.sample import DATASETS, splits_of
    from runtime.errors import UsageError
    from runtime.output import as_line

    if ":" in what:
        corpus = survey(what, splits=splits_of(split))
        if read:
            corpus = _decoded(corpus)
        found = _found(corpus)
        print(as_line(found) if as_json else _told(found))
        if not as_json and corpus.bad:
            print(_bad(corpus), file=sys.stderr)
        return
    if split or read:
        raise UsageError("--split and --read look at a dataset that lies somewhere; name it with its path, NAME:PATH")
    known = {name: _about(name) for name in ((what,) if what else DATASETS)}
    print(as_line(known) if as_json else "\n".join(_listed(name, about) for name, about in known.items()))


def _about(name: str) -> dict[str, Any]:
    """What is known of a dataset; where only a folder with labels.csv is expected, what its module says."""
    from encoders.datasets.corpus import Reader, reader_of
    from encoders.datasets.sample import DATASETS

    reader = reader_of(name)
    if not isinstance(reader, Reader):
        own = reader.__doc__ if name == "folder" else import_module(DATASETS[name][0].partition(":")[0]).__doc__
        title, _, layout = " ".join((own or "").replace("``", "").split()).partition(". ")
        return {"title": title.rstrip("."), "layout": layout.removeprefix("Expects ").rstrip(".") or "any folder"}
    about = reader.about
    told = {"title": about.title, "layout": about.layout, "licence": about.licence, "splits": about.splits}
    return told | {"classes": about.classes, "heads": list(reader.heads), "note": about.note}


def _listed(name: str, about: dict[str, Any]) -> str:
    lines = [f"{name}: {about['title']}"]
    lines += [f"  {key:<8} {about[key]}" for key in ("layout", "licence") if about.get(key)]
    if "splits" in about:
        sizes = ", ".join(f"{split} {size:,}" for split, size in about["splits"].items())
        lines.append(f"  {'splits':<8} {sizes}; {about['classes']} classes")
    if about.get("note"):
        lines.append(f"  {'note':<8} {about['note']}")
    return "\n".join(lines)


def _found(corpus: "Corpus") -> dict[str, Any]:
    """What lies there, by split: listed, and of these unusable; by head: classes, and those without a sample."""
    from encoders.datasets.corpus import labels_of

    listed, bad = Counter(s.split for s in corpus.samples), Counter(sample.split for sample, _ in corpus.bad)
    out = {id(sample) for sample, _ in corpus.bad}
    usable = [sample for sample in corpus.samples if id(sample) not in out]
    heads = {}
    for head in corpus.heads:
        sizes = Counter(label for sample in usable for label in labels_of(sample, head))
        classes = corpus.classes(head)
        heads[head] = {"classes": len(classes), "empty": [name for name in classes if not sizes[name]]}
    splits = {split: {"listed": listed[split], "unusable": bad[split]} for split in listed}
    return {"dataset": corpus.name, "folder": str(corpus.folder), "splits": splits, "heads": heads}


def _decoded(corpus: "Corpus") -> "Corpus":
    """The corpus with what cannot be decoded among its bad samples; a bar on stderr tells how far it is."""
    from dataclasses import replace

    from rich.console import Console
    from rich.progress import track

    from encoders.datasets.corpus import Bad
    from encoders.datasets.reader import why_unreadable

    known = {id(sample) for sample, _ in corpus.bad}
    rest = [sample for sample in corpus.samples if id(sample) not in known]
    console = Console(stderr=True)
    bar = track(rest, "reading", console=console, disable=not console.is_terminal)
    broken = [Bad(sample, reason) for sample in bar if (reason := why_unreadable(sample))]
    return replace(corpus, bad=[*corpus.bad, *broken])


def _told(found: dict[str, Any]) -> str:
    lines = [f"{found['dataset']} in {found['folder']}"]
    for split, count in found["splits"].items():
        unusable = f", {count['unusable']:,} of them unusable" if count["unusable"] else ""
        lines.append(f"  {split or '(no split)'}: {count['listed']:,} samples{unusable}")
    for head, classes in found["heads"].items():
        empty = classes["empty"]
        without = f", {len(empty)} of them without a sample (first {empty[0]!r})" if empty else ""
        lines.append(f"  {head + ': ' if head else ''}{classes['classes']} classes{without}")
    return "\n".join(lines)


def _bad(corpus: "Corpus", shown: int = 5) -> str:
    more = len(corpus.bad) - shown
    lines = [f"  {reason}" for _, reason in corpus.bad[:shown]] + ([f"  and {more:,} more"] if more > 0 else [])
    return "\n".join(["cannot be used (training leaves them out with --skip-bad):", *lines])
