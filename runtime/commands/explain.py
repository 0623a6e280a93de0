"""``legato explain``: where a trained classifier looks, and how its features lie."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command(epilog="For example: legato explain runs/emotions --split val --out why")
def explain(
    run: Annotated[Path, typer.Argument(help="The --out of a finished legato train PRESET.")],
    out: Annotated[Path, typer.Option(help="Folder for index.html, explain.json and the maps.")],
    data: Annotated[str, typer.Option(help="NAME:PATH of another dataset with the same classes.")] = "",
    split: Annotated[str, typer.Option(help="Splits to look at, comma-separated; the run's validation.")] = "",
    examples: Annotated[int, typer.Option(help="Clips that are looked into, as many of each class.")] = 6,
    label: Annotated[str, typer.Option(help="Show what speaks for this class, instead of the one said.")] = "",
    clusters: Annotated[
        bool, typer.Option("--clusters/--no-clusters", help="k-means against the labels, and a map of the features.")
    ] = True,
    perplexity: Annotated[float, typer.Option(help="Of the map (t-SNE): about how many neighbours.")] = 30.0,
    with_pictures: Annotated[
        bool, typer.Option("--with-pictures", help="Also what was seen and heard, under the maps.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of examples, clusters and map.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Look into a trained classifier.

    Single clips: which places of the picture and of the spectrogram speak for the class (Grad-CAM over tokens). The
    whole split: do features of one class lie together (k-means against the labels: adjusted Rand index and
    homogeneity), and where (t-SNE).
    """
    from encoders.explain import Question
    from encoders.explain import explain as answer
    from encoders.training import choose_device
    from runtime.commands.judge import progress_bar
    from runtime.output import as_line, check_place
    from runtime.report.explained import summary, write

    check_place(out / "index.html")
    question = Question(
        run=run, data=data, splits=tuple(s.strip() for s in split.split(",") if s.strip()), examples=examples,
        label=label, clusters=clusters, perplexity=perplexity, seed=seed, device=choose_device(device),
    )  # fmt: skip
    with progress_bar(quiet=as_json) as progress:
        found = answer(question, progress)
    write(found, out, with_pictures=with_pictures)
    if as_json:
        print(as_line(summary(found)))
        return
    for name, features in found.features.items():
        scores = features.scores
        print(f"{name}: ari {scores['ari']:.3f}, homogeneity {scores['homogeneity']:.3f}, {len(features.labels)} clips")
    if found.unreadable:
        print(f"{found.unreadable} clips cannot be read and are left out")
    print(f"wrote {out / 'index.html'}")
