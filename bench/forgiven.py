"""What forgiving damage does to answers: ``python -m bench.forgiven`` (recordings through ``LEGATO_DATA``).

``bench.severity`` found, on features, which damage a clip may be forgiven. Here whole replays say whether it is so:
recordings of people whom the bundle was not trained on, and on whom the rule was not chosen, each with their own voice,
another's and nobody's, are coded again, lost, received, decoded, encoded, filled and classified as ``legato replay
--loss`` does it, by the rule before (nothing forgiven), by the one that was found, and by its halves, on the same
packets. Besides how often the answer is right: whether its confidence still says so (debiased error of 10 equal bins).
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import severity_streams as streams
from bench.record import write_results
from bench.severity import CHOOSING
from bench.severity_policy import by_speaker, paired
from imputation.calibration_error import calibration_error, calibration_interval
from runtime.bundle import Bundle
from runtime.errors import SourceError
from runtime.pipeline import Pipeline
from runtime.prediction import Prediction
from runtime.sources import open_source

RESULTS = Path(__file__).parent / "results"
RULES = {  # video and audio: coverage, and the share of a clip that is forgiven
    "before": {"video": 0.5, "audio": 0.75, "forgive_video": 0.0, "forgive_audio": 0.0},
    "pictures": {"video": 0.5, "audio": 0.75, "forgive_video": 1.0, "forgive_audio": 0.0},
    "sound": {"video": 0.5, "audio": 0.25, "forgive_video": 0.0, "forgive_audio": 0.5},
    "both": {"video": 0.5, "audio": 0.25, "forgive_video": 1.0, "forgive_audio": 0.5},
}
LOSSES = ("", "iid-1", "iid-5", "wifi-burst", "congestion")
WAYS = [(camera, coding) for camera in streams.CAMERAS for coding in streams.CODINGS]
Row = dict[str, Any]


def strangers(bundle: Bundle, data: Path) -> Iterator[tuple[str, dict[str, list[Path]], list[str]]]:
    """By corpus: everybody's sentences, and who of them is new to the bundle and to the rule."""
    recipe = bundle.manifest.training["recipe"]
    known = {*recipe["train"], *recipe["validation"]}
    for corpus, chosen in CHOOSING.items():
        sentences = streams.recordings(data, corpus)
        names = {who: who.split("/")[-1] for who in sorted(sentences)}
        new = [w for w, name in names.items() if name not in chosen and f"{corpus}/{name}" not in known]
        yield corpus, sentences, new


def pipelines(bundle: Bundle) -> dict[str, Pipeline]:
    """One for each rule; the bundle is otherwise as it is served."""
    return {
        name: Pipeline.from_bundle(
            bundle, device="cpu", overrides=["engine.decode_ahead=0", *(f"presence.{k}={v}" for k, v in rule.items())]
        )
        for name, rule in RULES.items()
    }


def measure(rules: dict[str, Pipeline], data: Path, share: float, seed: int) -> list[Row]:
    """Every final answer that all rules give, side by side."""
    rows: list[Row] = []
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "coded.mkv"
        for corpus, sentences, new in strangers(next(iter(rules.values())).bundle, data):
            everybody = sorted(sentences)
            for who in new[: max(1, round(share * len(new)))]:
                other = everybody[(everybody.index(who) + 1) % len(everybody)]
                for turn, voice in enumerate(streams.LABELS):
                    camera, coding = WAYS[(turn + everybody.index(who)) % len(WAYS)]
                    scene = streams.scene(rng, sentences, corpus, who, voice, other)
                    streams.coded(scene, camera, coding, path)
                    known = {"speaker": f"{corpus}/{who.split('/')[-1]}", "voice": voice, "camera": camera,
                             "coding": coding, "label": streams.LABELS[voice]}  # fmt: skip
                    for loss in LOSSES:
                        rows += _side_by_side(rules, path, loss, seed + len(rows), known)
                print(f"{corpus}/{who}: {len(rows)} answers", flush=True)
    return rows


def _side_by_side(rules: dict[str, Pipeline], path: Path, loss: str, seed: int, known: Row) -> Iterator[Row]:
    said = {name: {p.clip: p for p in answers(pipeline, path, loss, seed)} for name, pipeline in rules.items()}
    for clip in sorted(set.intersection(*(set(found) for found in said.values()))):
        yield {**known, "loss": loss or "none", "clip": clip,
               **{name: _told(found[clip], known["label"]) for name, found in said.items()}}  # fmt: skip


def answers(pipeline: Pipeline, path: Path, loss: str, seed: int) -> list[Prediction]:
    """The final ones of a replay; none where too little came for any."""
    source = open_source(path, loss=loss or None, seed=seed)
    try:
        return [p for p in pipeline.run(source) if p.status == "final"]
    except SourceError:
        return []
    finally:
        source.close()


def _told(prediction: Prediction, label: int) -> Row:
    probabilities = list(prediction.probabilities.values())
    return {
        "right": int(np.argmax(probabilities)) == label and not prediction.abstained,
        "confidence": max(probabilities),
        "likelihood": max(probabilities[label], 1e-6),
        "observed": float(np.mean(list(prediction.observed_share.values()))),
        "spoiled": float(np.mean(["spoiled" in f for c in prediction.clips for f in c.flags.values()])),
    }


def summary_of(rows: Sequence[Row]) -> dict[str, Any]:
    """By loss, and over all that lost something: each rule, and the pairs' difference over speakers."""
    losses = sorted({row["loss"] for row in rows} - {"none"})
    groups = {loss: [r for r in rows if r["loss"] == loss] for loss in ("none", *losses)}
    groups["all losses"] = [r for r in rows if r["loss"] != "none"]
    return {name: _compared(mine) for name, mine in groups.items() if mine}


def _compared(rows: Sequence[Row]) -> Row:
    who = np.array([row["speaker"] for row in rows])
    stream = np.unique([f"{r['speaker']} {r['voice']} {r['loss']}" for r in rows], return_inverse=True)[1]
    out: Row = {"answers": len(rows), "speakers": len(np.unique(who))}
    values = {rule: {key: np.array([float(r[rule][key]) for r in rows]) for key in rows[0][rule]} for rule in RULES}
    for rule, found in values.items():
        checked = found["confidence"], found["right"].astype(bool)
        out[rule] = {
            **{key: float(by_speaker(found[key], who).mean()) for key in ("right", "observed", "spoiled")},
            "nats": float(by_speaker(np.log(found["likelihood"]), who).mean()),
            "calibration": calibration_error(*checked, groups=stream),
            "calibration_interval": calibration_interval(*checked, who, groups=stream),
        }
        if rule != "before":
            base = values["before"]
            points, error = paired(found["right"], base["right"], who)
            nats, nats_error = paired(np.log(found["likelihood"]), np.log(base["likelihood"]), who)
            out[rule] |= {"points": 100 * points, "points_error": 100 * error, "nats": nats, "nats_error": nats_error}
    return out


def lines_of(found: dict[str, Row]) -> list[str]:
    """The page."""
    every = found["all losses"]
    a, b = every["before"], every["both"]
    return [
        "# Damage forgiven",
        "",
        "Whole replays of the bundle `talk`, real recordings of GRID and Java-SED coded again (H.264 with and without "
        "B pictures, Opus and AAC, camera still and panned) and lost; final answers by four rules on the same packets. "
        "*before*: video present above 0.5 of its time, audio above 0.75, nothing forgiven. *pictures*: all that is "
        "spoiled of video forgiven. *sound*: audio present above 0.25, up to half of a clip spoiled. *both* of them. "
        f"None of the {every['speakers']} people was trained on, none had a say in the rule. Means, and standard "
        "errors, over people.",
        "",
        f"**What follows.** Forgiving both gives {b['points']:+.1f} ± {b['points_error']:.1f} points of accuracy and "
        f"{b['nats']:+.3f} ± {b['nats_error']:.3f} nats over all losses; the calibration error goes from "
        f"{a['calibration']:.3f} to {b['calibration']:.3f}. The share of clips that is believed rises from "
        f"{100 * a['observed']:.0f} to {100 * b['observed']:.0f} %; {100 * b['spoiled']:.0f} % are believed with "
        f"damage in them. Alone, pictures give {every['pictures']['points']:+.1f} ± "
        f"{every['pictures']['points_error']:.1f} points and sound {every['sound']['points']:+.1f} ± "
        f"{every['sound']['points_error']:.1f}.",
        "",
        "| loss, rule | answers | right | points | nats | believed | spoiled | calibration error |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(f"{name}, {rule}", row["answers"], row[rule]) for name, row in found.items() for rule in RULES),
        "",
        "Calibration error: 10 bins of equal mass, debiased; in brackets its 95 % interval over people.",
    ]


def _line(name: str, answers: int, row: Row) -> str:
    low, high = row["calibration_interval"]
    gains = "| | |"
    if "points" in row:
        gains = f"| {row['points']:+.1f} ± {row['points_error']:.1f} | {row['nats']:+.3f} ± {row['nats_error']:.3f} |"
    return (
        f"| {name} | {answers} | {100 * row['right']:.1f} % {gains} {100 * row['observed']:.0f} % | "
        f"{100 * row['spoiled']:.0f} % | {row['calibration']:.3f} [{low:.3f}, {high:.3f}] |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--people", type=float, default=1.0, help="share of the speakers; 0.2 is a look")
    parser.add_argument("--seed", type=int, default=0, help="of recordings and losses")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for forgiven.json and forgiven.md")
    parser.add_argument("--rows", type=Path, default=None, help="keep every answer in this JSON, or take it")
    options = parser.parse_args()
    data = os.environ.get("LEGATO_DATA")
    if data is None:
        parser.error("LEGATO_DATA is not set; let it name the folder with grid-av and javanese-av-emotion")
    if not 0 < options.people <= 1:
        parser.error(f"--people {options.people:g} is no share; use a number above 0, up to 1")
    if options.rows is not None and options.rows.exists():
        rows = json.loads(options.rows.read_text())
    else:
        rows = measure(pipelines(Bundle.load("talk")), Path(data), options.people, options.seed)
        if options.rows is not None:
            options.rows.write_text(json.dumps(rows))
    found = summary_of(rows)
    write_results(options.out, "forgiven", {"seed": options.seed, "rules": RULES, **found}, lines_of(found))


if __name__ == "__main__":
    main()
