"""Devices that tensors are on."""

import argparse

import torch

__all__ = ['torch_device']


def torch_device(text: str) -> str:
    """An argument that must be a torch device that this machine has."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError):
        raise argparse.ArgumentTypeError(
            'expected a torch device that this machine has, as cpu or '
            f'cuda:0, found "{text}"') from None
    return text
