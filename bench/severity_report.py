"""The page and the picture of ``bench.severity``: from its numbers to thresholds."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bench.severity_policy import Rule, Windows, paired

Values = Mapping[str, np.ndarray]
COVERAGE_BINS = (0.0, 0.15, 0.3, 0.5, 0.75, 0.9, 1.0)
ESTIMATES = {  # name -> what it is
    "severity": "the runtime's, of the damaged part",
    "severity, times share": "the same, times the damaged part's share of the clip",
    "severity, and lost": "the same, plus the share that did not come",
    "lost": "1 - 0.75^pictures lost",
    "share": "1 - (1 - P/I)^pictures lost, by bytes",
    "renewed": "the same, renewed by the bytes since",
    "bits": "bits lost per pixel",
    "bits, renewed": "the same, renewed by the bytes since",
}
SUMS = {"lost": "by_lost", "share": "by_share", "renewed": "by_motion", "bits": "by_bits_kept",
        "bits, renewed": "by_bits"}  # fmt: skip
RULED = "severity"  # what the rules go by
FORGIVEN = (-1.0, 0.06, 0.12, 0.25, 0.5, 0.75, 9.0)
SEVERITIES = (-1e-9, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0)
COVERAGES = (0.0, 0.25, 0.5, 0.75)
SOUND = (-1.0, 0.2, 0.5, 9.0)  # of the share that is spoiled
TODAY = {"video": Rule(coverage=0.5), "audio": Rule(coverage=0.75)}


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks with ties shared."""
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    first = np.cumsum(count) - count
    shared: np.ndarray = first[place] + (count[place] - 1) / 2
    return shared


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's; nan where one of them is constant."""
    a, b = ranks(x), ranks(y)
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def estimate(values: Values, name: str) -> np.ndarray:
    """An estimate of how wrong what came of each clip (N,) is."""
    damaged = np.maximum(values["came"] - values["coverage"], 0.0)
    out: np.ndarray
    if name in SUMS:
        out = values[SUMS[name]] / np.maximum(damaged, 0.05)
    elif name == "severity":
        out = values["severity"]
    elif name == "severity, and lost":
        out = values["severity"] * damaged + (1 - values["came"])
    else:
        out = values["severity"] * damaged
    return out


def correlations(values: Values) -> list[dict[str, Any]]:
    """How well each estimate ranks the true error of spoilt pictures, by camera, coding and corpus."""
    spoiled = (values["modality"] == "video") & values["has_spoilt"] & (values["came"] - values["coverage"] > 0.01)
    groups = {"all": spoiled}
    for key in ("camera", "coding", "corpus"):
        groups |= {str(v): spoiled & (values[key] == v) for v in np.unique(values[key])}
    rows = []
    for name in (*ESTIMATES, "luma"):
        x = estimate(values, name) if name != "luma" else values["luma"]
        rows.append(
            {"estimate": name, **{g: rank_correlation(x[k], values["error_spoilt"][k]) for g, k in groups.items()}}
        )
    return rows


def binned(values: Values, chosen: np.ndarray, x: np.ndarray, edges: Sequence[float], way: str) -> list[dict[str, Any]]:
    """In bins of x: the way's feature against the fills', and the log-likelihood it gains over the imputer's."""
    rows = []
    speaker = np.char.add(np.char.add(values["corpus"], "/"), values["speaker"])
    for low, high in pairwise(edges):
        here = chosen & (x > low) & (x <= high)
        if here.sum() < 20:
            continue
        mine, fill = (np.log(np.maximum(values[f"right_{w}"][here], 1e-6)) for w in (way, "imputer"))
        gain, error = paired(mine, fill, speaker[here])
        rows.append({
            "from": low, "to": high, "clips": int(here.sum()),
            **{f"error_{w}": float(values[f"error_{w}"][here].mean()) for w in (way, "imputer", "lerp")},
            "better": float((values[f"error_{way}"] < values["error_imputer"])[here].mean()),
            "gain": gain, "gain_error": error,
            **{f"hit_{w}": float(values[f"hit_{w}"][here].mean()) for w in ("whole", way, "imputer")},
        })  # fmt: skip
    return rows


def policies(windows: Windows, values: Values, name: str, choosing: np.ndarray) -> dict[str, Any]:
    """Every rule for one modality, the other by today's; chosen on some speakers, judged on the rest."""
    wanted, guess = choosing[windows.rows], estimate(values, name)
    base_choice = _choices(values, TODAY, guess)
    base = windows.answers(base_choice)
    rows: list[dict[str, Any]] = []
    for modality in ("video", "audio"):
        mine = values["modality"] == modality
        damage = guess if modality == "video" else np.maximum(values["came"] - values["coverage"], 0.0)
        for coverage in COVERAGES:
            for forgiven in FORGIVEN if modality == "video" else SOUND:
                rule = Rule(coverage=coverage, forgiven=forgiven)
                choice = np.where(mine, rule.choose(values, damage), base_choice)
                rows.append({"modality": modality, "coverage": coverage, "forgiven": forgiven,
                             **_compared(windows, choice, base, wanted)})  # fmt: skip
    best = {m: max((r for r in rows if r["modality"] == m), key=lambda r: r["choosing_gain"])
            for m in ("video", "audio")}  # fmt: skip
    damage = np.where(values["modality"] == "video", guess, np.maximum(values["came"] - values["coverage"], 0.0))
    rules = {m: Rule(coverage=r["coverage"], forgiven=r["forgiven"]) for m, r in best.items()}
    both = _compared(windows, _choices(values, rules, damage), base, wanted)
    return {"estimate": name, "rows": rows, "best": best, "both": both, "today": _plain(base, ~wanted),
            "never used": _compared(windows, np.zeros(len(guess), int), base, wanted)}  # fmt: skip


def _choices(values: Values, rules: Mapping[str, Rule], guess: np.ndarray) -> np.ndarray:
    video = values["modality"] == "video"
    return np.where(video, rules["video"].choose(values, guess), rules["audio"].choose(values, guess))


def _plain(answers: tuple[np.ndarray, ...], chosen: np.ndarray) -> dict[str, float]:
    loss, hit, error = (x[chosen] for x in answers)
    return {"nll": float(loss.mean()), "accuracy": float(hit.mean()), "error": float(error.mean())}


def _compared(
    windows: Windows, choice: np.ndarray, base: tuple[np.ndarray, ...], choosing: np.ndarray
) -> dict[str, float]:
    """Gains over today's rule in log-likelihood and accuracy: on the speakers to choose on, and on the others."""
    loss, hit, error = windows.answers(choice)
    out: dict[str, float] = {}
    for name, rows in (("choosing", choosing), ("others", ~choosing)):
        who = windows.speaker[rows]
        out[f"{name}_gain"], out[f"{name}_gain_error"] = paired(base[0][rows], loss[rows], who)
        out[f"{name}_points"], out[f"{name}_points_error"] = (
            100 * x for x in paired(hit[rows].astype(float), base[1][rows].astype(float), who)
        )
        out[f"{name}_error"] = float(error[rows].mean())
    return out


def summary_of(values: Values, windows: Windows, choosing: np.ndarray, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything of the page as numbers."""
    kept = {m: (values["modality"] == m) & values["has_kept"] for m in ("video", "audio")}
    spoilt = {m: (values["modality"] == m) & values["has_spoilt"] & (values["came"] - values["coverage"] > 0.01)
              for m in ("video", "audio")}  # fmt: skip
    out: dict[str, Any] = {
        "clips": len(values["coverage"]),
        "windows": len(windows.rows),
        "correlations": correlations(values),
        "kept": {m: binned(values, k, values["coverage"], COVERAGE_BINS, "kept") for m, k in kept.items()},
        "sound": binned(values, spoilt["audio"], values["came"] - values["coverage"], COVERAGE_BINS, "spoilt"),
    }
    guess = estimate(values, RULED)
    out["spoilt"] = {
        camera: binned(values, spoilt["video"] & (values["camera"] == camera), guess, SEVERITIES, "spoilt")
        for camera in np.unique(values["camera"]).tolist()
    }
    say("rules")
    out["rules"] = policies(windows, values, RULED, choosing)
    return out


def lines_of(found: Mapping[str, Any]) -> list[str]:
    """The page."""
    lines = [
        "# When a half-arrived clip is worth using",
        "",
        f"{found['clips']} clips (video or audio) that did not come whole, in {found['windows']} windows of the bundle "
        "`talk`: real recordings of GRID and Java-SED, still and panned, H.264 with and without B pictures, Opus and "
        "AAC, lost by " + ", ".join(found["losses"]) + ". Errors are mean squared, 1 = the variance of a feature; "
        "gain is the log-likelihood of the true label against the imputer's fill (nats, ± standard error over "
        "speakers) where only the window's last clip differs.",
        "",
        *verdict(found),
        "",
        "## What is good of a clip, its holes closed",
        "",
    ]
    for modality, rows in found["kept"].items():
        lines += [*_bin_table(f"{modality}, coverage", rows, "kept"), ""]
    lines += ["## Spoiled parts included", "", *_bin_table("audio, share spoiled", found["sound"], "spoilt"), ""]
    for camera, rows in found["spoilt"].items():
        lines += [*_bin_table(f"video, {camera}, severity", rows, "spoilt"), ""]
    lines += ["## How well the severity is estimated", "",
              "Rank correlation with the true error of the clip's feature, spoiled video clips:", ""]  # fmt: skip
    groups = [g for g in found["correlations"][0] if g != "estimate"]
    lines += ["| estimate | " + " | ".join(groups) + " |", "|---" * (len(groups) + 1) + "|"]
    for row in found["correlations"]:
        what = ESTIMATES.get(row["estimate"], "the true error of the picture, grey levels (not known to the runtime)")
        lines.append(f"| `{row['estimate']}`: {what} | " + " | ".join(f"{row[g]:.2f}" for g in groups) + " |")
    return [*lines, "", *_rule_lines(found["rules"])]


def verdict(found: Mapping[str, Any]) -> list[str]:
    """What follows, in sentences made from the numbers."""
    rules, best = found["rules"], found["rules"]["best"]
    both, unused = rules["both"], rules["never used"]
    text = {m: str(Rule(coverage=r["coverage"], forgiven=r["forgiven"])) for m, r in best.items()}
    bins = [r for rows in found["spoilt"].values() for r in rows]
    lost = [r["from"] for r in bins if r["error_spoilt"] >= r["error_imputer"]]
    clear = sum(abs(r["gain"]) > 2 * r["gain_error"] for r in bins)
    by = {r["estimate"]: r["all"] for r in found["correlations"]}
    rival = max((n for n in by if n not in ("severity", "luma")), key=lambda n: by[n])
    crossing = f"from severity {min(lost):g} on" if lost else "in no bin of estimated severity"
    return [
        f"**What follows.** By its feature a spoiled picture is worse than a filled one {crossing}, by the mean; in "
        f"the worst bin it is still nearer to the truth in {100 * min(r['better'] for r in bins):.0f} % of the clips. "
        f"One clip of a window moves the answer little: in {clear} of {len(bins)} bins the gain is above two standard "
        "errors, either way. Whole windows by a rule tell more. "
        f"Chosen on some speakers: video {text['video']}; audio {text['audio']} (of the share that is spoiled). "
        f"Together they give the other speakers {both['others_points']:+.1f} ± {both['others_points_error']:.1f} "
        f"points of accuracy and {both['others_gain']:+.3f} ± {both['others_gain_error']:.3f} nats against today's "
        f"rule, and the head sees features with an error of {both['others_error']:.2f} instead of "
        f"{rules['today']['error']:.2f}. Using no broken clip at all: {unused['others_points']:+.1f} ± "
        f"{unused['others_points_error']:.1f} points.",
        "",
        f"The runtime's estimate ranks the errors of spoiled pictures with {by['severity']:.2f}; the best of the "
        f"simple rivals (`{rival}`) with {by[rival]:.2f}; the true error of the picture, which nobody knows, with "
        f"{by['luma']:.2f}.",
        "",
        "Measured with frames lost whole (a packet is a frame here, not a slice of one) and with one bundle; some of "
        "GRID's speakers are those that it was trained on, Java-SED's are not. Thresholds belong to a bundle.",
    ]


def _bin_table(what: str, rows: Sequence[Mapping[str, Any]], way: str) -> list[str]:
    lines = [
        f"| {what} | clips | error | imputer's | lerp's | nearer than the imputer | gain | right: whole, so, filled |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        right = ", ".join(f"{100 * r[f'hit_{w}']:.1f}" for w in ("whole", way, "imputer"))
        lines.append(
            f"| {max(r['from'], 0):.3g} to {r['to']:.3g} | {r['clips']} | {r[f'error_{way}']:.2f} | "
            f"{r['error_imputer']:.2f} | {r['error_lerp']:.2f} | {100 * r['better']:.0f} % | "
            f"{r['gain']:+.3f} ± {r['gain_error']:.3f} | {right} |"
        )
    return lines


def _rule_lines(found: Mapping[str, Any]) -> list[str]:
    lines = [f"## Rules, damage estimated by `{found['estimate']}`", "",
             f"Today (video: {TODAY['video']}; audio: {TODAY['audio']}), on the speakers that nothing was chosen on: "
             f"accuracy {100 * found['today']['accuracy']:.2f} %, log-likelihood {-found['today']['nll']:.4f}. "
             "Against it:", "",
             "| rule | chosen on: gain | others: gain, nats | others: points of accuracy | error the head saw |",
             "|---|---|---|---|---|"]  # fmt: skip
    named = {f"{m}: {Rule(coverage=r['coverage'], forgiven=r['forgiven'])}": r for m, r in found["best"].items()}
    named |= {"both of them": found["both"], "no broken clip is used": found["never used"]}
    shown = [("video", c, f) for c in (0.0, 0.5) for f in (-1.0, 0.12, 0.5, 9.0)]
    shown += [("audio", c, f) for c in (0.0, 0.5, 0.75) for f in (-1.0, 9.0)]
    for m, c, f in shown:
        row = next(r for r in found["rows"] if (r["modality"], r["coverage"], r["forgiven"]) == (m, c, f))
        named.setdefault(f"{m}: {Rule(coverage=c, forgiven=f)}", row)
    for name, r in named.items():
        lines.append(
            f"| {name} | {r['choosing_gain']:+.4f} | {r['others_gain']:+.4f} ± {r['others_gain_error']:.4f} | "
            f"{r['others_points']:+.2f} ± {r['others_points_error']:.2f} | {r['others_error']:.3f} |"
        )
    return lines


def plot(values: Values, found: Mapping[str, Any], path: Path) -> None:
    """Error by coverage, error by estimated severity for both cameras, and what forgiving gains."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for modality, colour in (("video", "C0"), ("audio", "C1")):
        rows = found["kept"][modality]
        x = [(r["from"] + r["to"]) / 2 for r in rows]
        left.plot(x, [r["error_kept"] for r in rows], marker="o", color=colour, label=f"{modality}: what is good of it")
        left.plot(x, [r["error_imputer"] for r in rows], linestyle=":", color=colour, label=f"{modality}: filled")
    left.set(xlabel="coverage", ylabel="error of the feature (1 = its variance)", ylim=(0, None))
    spoiled = (values["modality"] == "video") & values["has_spoilt"] & (values["came"] - values["coverage"] > 0.01)
    for camera, colour in (("still", "C0"), ("pan", "C3")):
        here = spoiled & (values["camera"] == camera)
        middle.scatter(estimate(values, RULED)[here] + 1e-3, values["error_spoilt"][here] + 1e-4, s=3, alpha=0.25,
                       color=colour, linewidths=0, label=camera)  # fmt: skip
        middle.axhline(float(values["error_imputer"][here].mean()), color=colour, linewidth=0.8, linestyle=":")
    middle.set(xscale="log", yscale="log", xlabel="estimated severity", ylabel="true error of the feature")
    for coverage in (0.0, 0.5):
        rows = [r for r in found["rules"]["rows"] if (r["modality"], r["coverage"]) == ("video", coverage)]
        places = range(len(rows))
        right.errorbar(places, [r["others_gain"] for r in rows], yerr=[r["others_gain_error"] for r in rows],
                       marker="o", markersize=3, capsize=2, label=f"coverage > {coverage:g}")  # fmt: skip
        right.set_xticks(list(places), ["none" if r["forgiven"] < 0 else "all" if r["forgiven"] > 1
                                        else f"{r['forgiven']:g}" for r in rows])  # fmt: skip
    right.axhline(0, color="0.6", linewidth=0.8)
    right.set(xlabel="damage forgiven (estimate)", ylabel="log-likelihood gained over today's rule")
    for axes in (left, middle, right):
        axes.legend(frameon=False, fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
