"""Ptychography: complex object patches from diffraction patterns, learnt without ground truth."""
