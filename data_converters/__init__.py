"""From CT scans to X-ray views with 3D and 2D boxes."""

__version__ = '0.1.0'
