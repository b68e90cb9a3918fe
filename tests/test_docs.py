"""What the documents say is so: links, files, commands; the site builds."""

import argparse
import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md'),
                    *ROOT.glob('checkpoints/*.md')])
LINK = re.compile(r'\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)')
TARGET = re.compile(r'^([a-z]+):', re.M)

each_document = pytest.mark.parametrize(
    'document', DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))


def anchors(path):
    """Of a document's headings, as GitHub makes them."""
    return {
        re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
        for heading in re.findall(r'^#+ (.*)$', path.read_text(), re.M)
    }


def commands(text):
    """All that a reader may copy: lines of blocks, and code within lines.

    Left out is what is a pattern and no command: "..." or "|" in it.
    """
    blocks = re.findall(r'^```\w*\n(.*?)^```', text, re.M | re.S)
    lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
    prose = re.sub(r'^```.*?^```', '', text, flags=re.M | re.S)
    lines += [code.replace('\n', ' ')
              for code in re.findall(r'`([^`]+)`', prose)]
    split = [shlex.split(line, comments=True) for line in lines
             if re.match(r'(python|make|tools/\w+\.sh) ', line)]
    return [words for words in split if not {'...', '|'} & set(' '.join(
        words).replace('...', ' ... ').replace('|', ' | ').split())]


class Parsed(BaseException):
    """The arguments are right; nothing has been done."""


def parse(words, monkeypatch):
    """Let a command read its arguments, and stop there.

    Raises:
        Parsed: They are right.
        SystemExit: They are not.
    """
    read = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        read(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse_args)
    monkeypatch.setattr(sys, 'argv', words)
    if words[0] == '-m':
        importlib.import_module(f'{words[1]}.__main__').main(words[2:])
    else:
        monkeypatch.syspath_prepend(str(ROOT / Path(words[0]).parent))
        runpy.run_path(str(ROOT / words[0]))['main'](words[1:])


@each_document
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


@each_document
def test_files_that_commands_name_are_there(document):
    named = re.findall(
        r'(?<![\w./-])(?:configs|tools|benchmarks|checkpoints|projects)/'
        r'[\w./-]+\.(?:py|sh|pth|json)', document.read_text())
    # Configs and checkpoints without their folder, as in tables.
    named += [f'configs/mv2d_xray/{name}' for name in re.findall(
        r'`((?:mv2d-xray|triangulation|score-grid|imvoxelnet|detr3d|petr)_'
        r'[\w-]+\.py)`', document.read_text())]
    assert [name for name in named if not (ROOT / name).exists()] == []


@each_document
def test_commands_are_understood(document, monkeypatch, capsys):
    for words in commands(document.read_text()):
        if words[0] == 'make':
            targets = TARGET.findall((ROOT / 'Makefile').read_text())
            assert words[-1] in targets, words
        elif words[0] == 'python' and words[1] != '-m' or (
                words[:3] == ['python', '-m', 'data_converters']):
            with monkeypatch.context() as patch:
                try:
                    parse(words[1:], patch)
                except Parsed:
                    continue
                except SystemExit:
                    pass
            pytest.fail(f'{document.name}: {shlex.join(words)}: '
                        f'{capsys.readouterr().err}')


def test_a_command_that_no_tool_knows_is_noticed(tmp_path, monkeypatch,
                                                 capsys):
    page = tmp_path / 'page.md'
    page.write_text('```\npython tools/report.py \\\n    r.json  # one\n```\n')
    test_commands_are_understood(page, monkeypatch, capsys)
    page.write_text('Try `python tools/report.py\nr.json --colour red`.\n')
    with pytest.raises(pytest.fail.Exception, match='--colour'):
        test_commands_are_understood(page, monkeypatch, capsys)


def test_the_front_door_is_short():
    text = (ROOT / 'README.md').read_text()
    assert text.count('\n') <= 150
    assert 'make test' in text and 'make demo' in text


def test_every_page_is_on_the_way():
    """From README in two steps, whatever the site's menu says."""
    seen, new = set(), {ROOT / 'README.md'}
    while new:
        seen |= new
        new = {(page.parent / file).resolve() for page in new
               for file, _ in LINK.findall(page.read_text())
               if file.endswith('.md')} - seen
    pages = set(ROOT.glob('docs/**/*.md')) - {ROOT / 'docs/index.md'}
    assert pages - seen == set()


@pytest.mark.slow
def test_site_builds_and_needs_no_network(tmp_path):
    built = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet',
         '--site-dir', str(tmp_path)], cwd=ROOT, capture_output=True,
        text=True, env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'})
    assert built.returncode == 0, built.stdout + built.stderr
    pages = list(tmp_path.glob('**/*.html'))
    assert len(pages) > len(list((ROOT / 'docs').glob('**/*.md')))
    for page in pages:
        loaded = re.findall(
            r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="?(?:https?:)?//'
            r'[^">]*', page.read_text())
        assert loaded == [], page.name
    for sheet in tmp_path.glob('**/*.css'):
        assert not re.search(r'url\(["\']?(?:https?:)?//', sheet.read_text())
