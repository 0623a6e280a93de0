"""Settings: overrides by name, by dotted key and from text; what is unknown or of another type stops."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.errors import ConfigError, UsageError
from encoders.settings import assignments, from_dict, override, pick, to_dict


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 8
    strides: tuple[tuple[int, int], ...] = ((1, 2),)


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    rate: float = 0.5
    seconds: Fraction = Fraction(2, 5)
    limit: int | None = None
    on: bool = False
    names: tuple[str, ...] = ()
    pair: tuple[float, float] = (0.9, 0.99)
    inner: Inner = field(default_factory=Inner)
    notes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ConfigError(f"rate {self.rate} is negative; use 0 or more")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("rate", "1e-3", 1e-3),
        ("rate", "2", 2.0),
        ("seconds", "1/2", Fraction(1, 2)),
        ("seconds", "0.5", Fraction(1, 2)),
        ("seconds", 0.4, Fraction(2, 5)),  # as JSON gives it
        ("limit", "7", 7),
        ("limit", "None", None),
        ("on", "true", True),
        ("on", "False", False),
        ("names", "train,val", ("train", "val")),
        ("names", '["train"]', ("train",)),
        ("names", "", ()),
        ("pair", "0.5,0.7", (0.5, 0.7)),
        ("name", "17", "17"),
        ("notes", '{"a": 1}', {"a": 1}),
    ],
)
def test_text_is_read_as_the_field_s_type(key, text, value):
    assert getattr(override(Outer(name="x"), {key: text}), key) == value


def test_dotted_keys_reach_inside_and_leave_the_rest():
    config = override(Outer(name="x", rate=0.1), {"inner.width": "16", "inner.strides": "[[2, 2], [1, 1]]"})
    assert config == Outer(name="x", rate=0.1, inner=Inner(width=16, strides=((2, 2), (1, 1))))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("rat", 1, "setting 'rat' is unknown; did you mean rate"),
        ("inner.widht", 1, "setting 'inner.widht' is unknown; did you mean inner.width"),
        ("inner", 3, "inner=3 is not of type"),
        ("rate.x", 1, "reaches into rate, which has no fields"),
        ("rate", "fast", "rate='fast' is not of type float"),
        ("rate", True, "is not of type float"),
        ("limit", 1.5, "limit=1.5 is not of type int | None"),
        ("limit", True, "is not of type"),
        ("on", 1, "on=1 is not of type bool"),
        ("name", 5, "name=5 is not of type str"),
        ("pair", "1,2,3", "is not of type"),
        ("names", [1], "is not of type"),
        ("seconds", "1/0", "is not of type Fraction"),
    ],
)
def test_unknown_keys_and_other_types_are_one_sentence(key, value, says):
    with pytest.raises(UsageError) as raised:
        override(Outer(name="x"), {key: value})
    assert says in str(raised.value)


def test_a_contradiction_keeps_its_own_sentence():
    with pytest.raises(ConfigError, match=r"rate -1.0 is negative"):
        override(Outer(name="x"), {"rate": "-1"})


def test_what_has_no_default_must_be_given():
    with pytest.raises(ConfigError, match="Outer needs a value for name"):
        override(Outer, {"rate": 1.0})


def test_assignments_need_an_equals_sign():
    assert assignments(["a.b=1", "c= x=y "]) == {"a.b": "1", "c": "x=y"}
    with pytest.raises(UsageError, match="--set 'oops' is not key=value"):
        assignments(["oops"])


def test_a_wrong_name_lists_what_is_close_or_all():
    with pytest.raises(UsageError, match="fruit 'aple' is unknown; did you mean apple"):
        pick({"apple": 1, "pear": 2}, "aple", "fruit")
    with pytest.raises(UsageError, match="choose from apple, pear"):
        pick({"apple": 1, "pear": 2}, "xyz", "fruit")


@given(
    st.builds(
        Outer,
        name=st.text(max_size=8),
        rate=st.floats(0, 1e6),
        seconds=st.fractions(0, 10),
        limit=st.none() | st.integers(),
        on=st.booleans(),
        names=st.lists(st.text(max_size=4), max_size=3).map(tuple),
        inner=st.builds(Inner, width=st.integers()),
    )
)
def test_a_config_survives_json(config):
    import json

    assert from_dict(Outer, json.loads(json.dumps(to_dict(config)))) == config
