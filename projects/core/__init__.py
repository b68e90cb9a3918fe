"""What all projects share: geometry, files, evaluation, tools' common parts.

The core builds no network and imports no project. Frames and units are those
of :mod:`projects.core.geometry`.
"""

__version__ = '0.1.0'
