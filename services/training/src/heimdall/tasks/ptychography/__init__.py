"""Ptychography: complex object patches from diffraction patterns, learnt without ground truth."""

from heimdall.tasks.ptychography.task import PtychographyTask

__all__ = ["PtychographyTask"]
