"""Names that networks import beside what they compute with: importing them works, using them is refused."""

from __future__ import annotations

from typing import NoReturn


class GenerationMixin:
    """A base class of `mamba_ssm`'s language models. Their generation of tokens is not served."""

    def generate(self, *arguments: object, **options: object) -> NoReturn:
        raise NotImplementedError(
            "generation of tokens is not served: ganglion's Mamba computes whole sequences"
        )


def load_config_hf(model_name: str) -> NoReturn:
    """The configuration of a model on a hub."""
    _refuse_downloads(model_name)


def load_state_dict_hf(model_name: str, device: object = None, dtype: object = None) -> NoReturn:
    """The weights of a model on a hub."""
    _refuse_downloads(model_name)


def _refuse_downloads(model_name: str) -> NoReturn:
    raise NotImplementedError(
        f"{model_name} is not downloaded: load weights from a file, with torch.load(path, weights_only=True)"
    )
