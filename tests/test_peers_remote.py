"""A peer in another process: what it is asked, what it answers, and how it ends."""

import io
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from bench.peers import remote
from bench.peers.pypots import serve
from bench.peers.remote import Remote, fit, join
from encoders.errors import DataError, MissingExtraError
from imputation.baselines import Lerp
from imputation.evaluate import Arm, evaluate
from imputation.features import FeatureSet
from imputation.imputer import Filled
from imputation.study.recipes import ARMS, FILLS, HEADS
from imputation.study.workshop import FITTED
from imputation.train_head import HeadTraining, train_head

ROOT = Path(__file__).parent.parent

# speaks as serve does, of numpy alone: fills with 7, says what it was given, dies when a window is 9 long
STAND_IN = """
import sys
from safetensors.numpy import load, save
import numpy as np
print("a word beside", file=sys.stderr)
out, given = sys.stdout.buffer, sys.stdin.buffer
def say(content, wrong=0):
    out.write((len(content) + 1).to_bytes(8, "little") + bytes([wrong]) + content); out.flush()
if "--steps=0" in sys.argv:
    say("steps 0 must be above 0".encode(), 1); sys.exit(2)
say("/".join(sys.argv[2:]).encode())
while question := given.read(int.from_bytes(given.read(8), "little")):
    asked = load(question[1:])
    if asked["features"].shape[1] == 9:
        sys.exit(3)
    if asked["features"].shape[1] == 8:
        say("8 is too long".encode(), 1); continue
    assert np.isfinite(asked["features"]).all()
    absent = asked["exists"][..., None] > asked["presence"]
    say(save({"features": np.full_like(asked["features"], 7), "variance": absent.astype("float32")}))
"""
COMMAND = [sys.executable, "-c", STAND_IN]


def ask(peer, length: int = 3) -> Filled:
    presence = torch.ones(2, length, 2, dtype=torch.bool)
    presence[:, 1, 0] = False
    exists = torch.ones(2, length, dtype=torch.bool)
    exists[1, 0] = False
    features = torch.where(presence.unsqueeze(-1), torch.randn(2, length, 2, 4), torch.nan)
    return peer(features, presence, exists)


def test_a_peer_elsewhere_fills_what_is_absent_and_nothing_else(tmp_path):
    peer = Remote(COMMAND, tmp_path, ["--steps=1"])
    features, presence = torch.randn(2, 3, 2, 4), torch.ones(2, 3, 2, dtype=torch.bool)
    presence[:, 1, 0] = False
    exists = torch.ones(2, 3, dtype=torch.bool)
    exists[1, 0] = False
    found = peer(torch.where(presence.unsqueeze(-1), features, torch.nan), presence, exists)
    assert (found.features[:, 1, 0] == 7).all()
    keep = presence.clone()
    assert torch.equal(found.features[keep], features[keep])  # before the stream's start too: as it came
    assert torch.equal(found.variance > 0, ~presence) and found.rung == "--steps=1"
    assert peer.applies(presence, exists).all() and next(iter(peer.state_dict().values())).device.type == "cpu"
    peer.close()
    assert peer._process.returncode == 0


def test_what_a_peer_refuses_is_said_and_it_goes_on(tmp_path):
    peer = Remote(COMMAND, tmp_path)
    with pytest.raises(DataError, match="8 is too long"):
        ask(peer, 8)
    assert (ask(peer).features[:, 1, 0] == 7).all()
    with pytest.raises(DataError, match=r"the peer in .* ended by itself \(3\); see what it said above"):
        ask(peer, 9)
    with pytest.raises(DataError, match="ended by itself"):
        ask(peer)


def test_a_peer_that_cannot_start_says_why(tmp_path):
    with pytest.raises(DataError, match="steps 0 must be above 0"):
        Remote(COMMAND, tmp_path, ["--steps=0"])
    with pytest.raises(DataError, match="what it printed first is no answer"):
        Remote([sys.executable, "-c", "print('good morning')"], tmp_path)
    with pytest.raises(DataError, match=r"ended by itself \(1\)"):
        Remote([sys.executable, "-c", "import sys; sys.exit(1)"], tmp_path)


def test_a_peer_learns_from_a_fold_and_keeps_no_windows(tmp_path, monkeypatch):
    data = FeatureSet.of(torch.randn(8, 3, 2, 4), torch.arange(8) % 2, ("a", "b"), speaker=["s"] * 8).fitted()
    seen = []

    class Spy:
        def __init__(self, command, folder, options):
            given = FeatureSet.load(options[3])
            seen.append((options, given.split, torch.equal(given.standardised(), data.standardised()[:6])))

    monkeypatch.setattr(remote, "Remote", Spy)
    train, validation = data.rows(torch.arange(4)), data.rows(torch.arange(4, 6))
    fit("saits", train, validation, tmp_path / "f", 5, command=COMMAND, training={"steps": 2, "batch": 4})
    options, split, same = seen[0]
    assert options[:2] == ["--peer", "saits"] and {"--steps=2", "--batch=4", "--seed=5"} <= set(options)
    assert split == ("train",) * 4 + ("validation",) * 2 and same
    assert not list((tmp_path / "f").iterdir())


def test_a_head_learns_on_what_a_peer_fills(tmp_path):
    data = FeatureSet.of(torch.randn(8, 3, 2, 4), torch.arange(8) % 2, ("a", "b")).fitted()
    config = HeadTraining(kind="linear", sampling="all", steps=2, batch=4)
    head, fill = train_head(config, data, data, tmp_path / "head", imputer=Remote(COMMAND, tmp_path))
    results = evaluate([Arm("filled", head, fill)], data, draws=1)
    assert results.error("filled", "2/3").video > 20  # sevens, where a deviation is 1


def test_peers_join_the_study(monkeypatch):
    for table in (ARMS, FILLS, HEADS, FITTED):
        for name in table:
            monkeypatch.setitem(table, name, table[name])
    before = [set(t) for t in (ARMS, FILLS, HEADS, FITTED)]
    try:
        assert join(("saits", "csdi"), python=Path("p"), steps=2, batch=4) == ["SAITS", "SAITS-ft-all", "CSDI"]
        assert ARMS["SAITS-ft-all"].head == "saits_all" and HEADS["saits_all"].fill == "saits"
        assert FILLS["csdi"].kind == "csdi" and FITTED["csdi"].keywords["training"]["steps"] == 2
    finally:
        for table, names in zip((ARMS, FILLS, HEADS, FITTED), before, strict=True):
            for name in set(table) - names:
                del table[name]


def test_without_an_environment_the_way_to_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PYPOTS_PYTHON", str(tmp_path / "python"))
    with pytest.raises(MissingExtraError, match=r"python does not exist; make PyPOTS's environment with sh bench"):
        join(steps=1, batch=1)


def test_the_other_end_speaks_the_same():
    stream = io.BytesIO()
    presence = torch.tensor([[[True, True], [False, True], [True, True]]])
    question = save({"features": torch.arange(12.0).view(1, 3, 2, 2), "presence": presence,
                     "exists": torch.ones(1, 3, dtype=torch.bool)})  # fmt: skip
    serve.write(stream, question)
    stream.seek(0)
    found = load(serve.answer(Lerp(), serve.read(stream)))
    assert found["features"][0, 1, 0].tolist() == [4.0, 5.0]
    assert found["variance"].shape == (1, 3, 2) and serve.read(stream) == b""


@pytest.mark.slow
def test_a_trained_peer_is_asked_through_the_pipe(tmp_path):
    """All of it but PyPOTS: a network that says one number stands for its own."""
    program = (
        "import sys; sys.path.insert(0, '.');"
        "from tests.test_peers import Constant, ConstantConfig; from bench.peers.pypots import fills, networks, serve;"
        "networks.NETWORKS['constant'] = (Constant, ConstantConfig); "
        "fills.installed = lambda: print('a word between') or '0'; sys.exit(serve.main())"
    )
    data = FeatureSet.of(torch.randn(8, 3, 2, 4), torch.arange(8) % 2, ("a", "b")).fitted()
    train, validation = data.rows(torch.arange(4)), data.rows(torch.arange(4, 8))
    training = {"steps": 2, "batch": 4, "components": 2}
    command = [sys.executable, "-c", program]
    peer = fit("constant", train, validation, tmp_path, 0, command=command, training=training)
    first = ask(peer)
    assert peer.rung == "constant" and torch.isfinite(first.features[:, 1, 0]).all()
    peer.close()
    again = fit("constant", train, validation, tmp_path, 0, command=command, training=training)
    assert torch.equal(ask(again).features[:, 1, 0], first.features[:, 1, 0])
    with pytest.raises(DataError, match="was trained with steps 2, not 3"):
        fit("constant", train, validation, tmp_path, 0, command=command, training={**training, "steps": 3})
