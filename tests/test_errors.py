"""The wording of errors, and how they show names."""

from __future__ import annotations

import json
import os

import pytest

from ganglion.errors import shown, unknown


def test_few_names_are_all_listed_and_the_nearest_is_offered():
    message = unknown("colour", "gren", ["red", "green", "blue"])
    assert message == "unknown colour 'gren'. Did you mean 'green'? Valid: blue, green, red."


def test_of_many_names_only_the_nearest_are_listed():
    names = [f"network_{i}" for i in range(1000)] + ["vmamba_tiny", "vmamba_base"]
    message = unknown("model", "vmamba_tinny", names)
    assert "Did you mean 'vmamba_tiny'? The nearest of 1002: vmamba_tiny" in message
    assert len(message) < 200 and "network_7" not in message
    assert len(unknown("model", "?", names)) < 200


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain name-1.jpg", "plain name-1.jpg"),
        ("Käfer 甲虫 🐞.jpg", "Käfer 甲虫 🐞.jpg"),
        ("at\u202f3.14\u00a0PM.png", "at\u202f3.14\u00a0PM.png"),  # spaces that macOS puts in names
        (os.fsdecode(b"caf\xe9.jpg"), r"caf\xe9.jpg"),
        ("a\nb\tc\x1b[31m\x7f\x00", r"a\nb\tc\x1b[31m\x7f\x00"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),  # turns the direction of what follows
        ("\ud83d", r"\ud83d"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_shown(name, expected):
    assert shown(name) == expected
    assert json.loads(json.dumps(shown(name), ensure_ascii=False).encode()) == expected
    assert shown(shown(name)) == expected
