"""Model families: one adapter each over diffusers' classes."""

from generator.models.base import VideoModel, load_model

__all__ = ["VideoModel", "load_model"]
