"""Half precision and memory of a training."""

import contextlib
import ctypes
import logging
from typing import Any, Tuple

import torch
from mmdet3d.registry import OPTIM_WRAPPERS
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from torch import Tensor

__all__ = [
    'BFloat16OptimWrapper', 'as_is', 'cpu_has_bfloat16', 'features_2d',
    'keep_freed_memory', 'use_half_precision'
]


def as_is(features: Any) -> Any:
    """In place of an mmdet detector's ``extract_feat``: its ``loss()`` and
    ``predict()`` then start from features, as of :func:`features_2d`."""
    return features


def features_2d(detector: Any, images: Tensor) -> Tuple[Tensor, ...]:
    """Backbone and neck of an mmdet detector on images (N, C, H, W), in
    float32 whatever they ran in, and contiguous: mmcv's operators read any
    layout as if it were (open-mmlab/mmcv#2203)."""
    # Convolutions are faster in this one.
    images = images.contiguous(memory_format=torch.channels_last)
    return tuple(feature.float().contiguous() for feature
                 in type(detector).extract_feat(detector, images))


def keep_freed_memory() -> None:
    """Let the allocator keep large blocks for the next step of a training.

    By default glibc returns each to the system and gets it back page by
    page, an eighth of a CPU training step.
    """
    try:
        libc = ctypes.CDLL('libc.so.6')
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # another C library


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Autocast on a CPU, which mmengine's AmpOptimWrapper does not do.

    bfloat16 has float32's range, so that no loss has to be scaled.
    """

    @contextlib.contextmanager
    def optim_context(self, model):
        """As in the base class, under autocast."""
        with super().optim_context(model):
            with torch.autocast('cpu', torch.bfloat16):
                yield


def cpu_has_bfloat16() -> bool:
    """Whether this CPU's convolutions take bfloat16. Others do it by bits: a
    training step takes ten to thirty times as long."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def use_half_precision(cfg: Config) -> None:
    """Train and test under autocast, as ``--amp`` asks: in float16 on a CUDA
    device, else in bfloat16; with a warning not at all on a CPU without."""
    if torch.cuda.is_available():
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    elif not cpu_has_bfloat16():
        print_log('--amp: expected a CPU with bfloat16 (AVX-512), found none: '
                  'all is in float32', logger='current',
                  level=logging.WARNING)
        return
    else:
        cfg.optim_wrapper.type = 'BFloat16OptimWrapper'
    for loop in (cfg.get('val_cfg'), cfg.get('test_cfg')):
        if loop:
            loop.fp16 = True
