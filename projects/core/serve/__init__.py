"""A page on which a person drops the views of one object and sees the boxes
that a model finds in them.

``uploads`` says what may be sent, ``visits`` keeps files and queue, ``app``
speaks HTTP. It needs FastAPI, which the rest of the core does not.
"""

from projects.core.serve.app import create_app
from projects.core.serve.visits import Finder, Limits

__all__ = ['Finder', 'Limits', 'create_app']
