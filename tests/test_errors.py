"""The wording of errors."""

from __future__ import annotations

from ganglion.errors import unknown


def test_few_names_are_all_listed_and_the_nearest_is_offered():
    message = unknown("colour", "gren", ["red", "green", "blue"])
    assert message == "unknown colour 'gren'. Did you mean 'green'? Valid: blue, green, red."


def test_of_many_names_only_the_nearest_are_listed():
    names = [f"network_{i}" for i in range(1000)] + ["vmamba_tiny", "vmamba_base"]
    message = unknown("model", "vmamba_tinny", names)
    assert "Did you mean 'vmamba_tiny'? The nearest of 1002: vmamba_tiny" in message
    assert len(message) < 200 and "network_7" not in message
    assert len(unknown("model", "?", names)) < 200
