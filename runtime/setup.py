"""Packs the modules of the core that a deployed model needs."""

import re
from pathlib import Path

from plotly.offline import get_plotlyjs
from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parents[1]
VERSION = re.search(r"^__version__ = '(.+)'$",
                    (ROOT / 'projects/core/__init__.py').read_text(),
                    re.MULTILINE)[1]
# Nothing else of the repository is needed; tests/test_imports.py says so.
MODULES = {
    'projects.core': [
        'box_correlation', 'consistency', 'deployed', 'drawing', 'files',
        'fusion', 'geometry', 'inference', 'infos', 'projections', 'results',
        'rig'],
    'projects.core.engine': ['command_line', 'known_views', 'watching'],
    'projects.core.evaluation': ['matching'],
    'projects.core.export': ['coco', 'found', 'slicer', 'table'],
    'projects.core.report': ['page'],
    'mv2d_xray_runtime': ['run'],
}


class Packed(build_py):
    """Those modules, the report's template and Plotly for the browser."""

    def find_package_modules(self, package, package_dir):
        """Modules as (package, name, file)."""
        return [module for module in
                super().find_package_modules(package, package_dir)
                if module[1] in ('__init__', *MODULES[package])]

    def run(self):
        """Build, then add Plotly's script beside the template."""
        super().run()
        page = Path(self.build_lib, 'projects/core/report/plotly.min.js')
        page.write_text(get_plotlyjs(), encoding='utf-8')


setup(
    version=VERSION,
    packages=list(MODULES),
    package_dir={**{name: f'../{name.replace(".", "/")}' for name in MODULES},
                 'mv2d_xray_runtime': '../tools'},
    package_data={'projects.core.report': ['report.html']},
    cmdclass=dict(build_py=Packed),
)
