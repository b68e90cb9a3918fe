"""From CT scans to X-ray views with 3D and 2D boxes."""

from projects.core import __version__

__all__ = ['__version__']
