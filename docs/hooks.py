"""What MkDocs does beside its plugins (mkdocs.yml names this file)."""

import re

_ROLE = re.compile(r':[a-z]+:(?=<code>)')


def on_page_content(html: str, **_) -> str:
    """Docstrings name code with Sphinx's roles; the name alone is shown."""
    return _ROLE.sub('', html)
