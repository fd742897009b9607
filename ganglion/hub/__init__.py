"""Networks that go to the hub: the card that says what they are, and the upload."""

from .card import CardError, model_card, write_card
from .folder import write_folder
from .push import HubError, push

__all__ = ["CardError", "HubError", "model_card", "push", "write_card", "write_folder"]
