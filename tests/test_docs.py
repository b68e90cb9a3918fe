"""What the documents point at is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'),
                    *ROOT.glob('checkpoints/*.md')])
LINK = re.compile(r'\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)')


def anchors(path):
    """Of a document's headings, as GitHub makes them."""
    return {
        re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
        for heading in re.findall(r'^#+ (.*)$', path.read_text(), re.M)
    }


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(document):
    for file, anchor in LINK.findall(document.read_text()):
        target = document.parent / file if file else document
        assert target.exists(), f'{document.name}: {file} is not there'
        if anchor:
            assert anchor in anchors(target), f'{document.name}: #{anchor}'


def test_a_broken_link_is_noticed(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('# One, two `three`\n[a](#one-two-three) [b](#four)\n')
    with pytest.raises(AssertionError, match='#four'):
        test_links_lead_somewhere(page)


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda p: p.name)
def test_files_that_commands_name_are_there(document):
    named = re.findall(
        r'(?<![\w./-])(?:configs|tools|benchmarks|checkpoints|projects)/'
        r'[\w./-]+\.(?:py|sh|pth|json)', document.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []
