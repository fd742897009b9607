"""What ends a run."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training cannot continue; the message says why, and what to change. Checkpoints already written are intact."""
