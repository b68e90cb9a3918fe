"""Installs the packages and the commands ``mv2d-xray-*``."""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).resolve().parent
# Read, not imported: the version must be known before torch is there.
VERSION = re.search(r"^__version__ = '(.+)'$",
                    (ROOT / 'projects/core/__init__.py').read_text(),
                    re.MULTILINE)[1]
COMMANDS = dict(
    convert='data_converters.__main__', train='mv2d_xray_tools.train',
    test='mv2d_xray_tools.test', infer='mv2d_xray_tools.infer',
    report='mv2d_xray_tools.report', export='mv2d_xray_tools.export',
    serve='mv2d_xray_tools.serve', diagnose='mv2d_xray_tools.diagnose',
    explain='mv2d_xray_tools.explain',
    browse='mv2d_xray_tools.browse_dataset', deploy='mv2d_xray_tools.deploy',
    finetune='mv2d_xray_tools.finetune', run='mv2d_xray_tools.run')

setup(
    name='mv2d-xray',
    version=VERSION,
    description='3D boxes of small indications from a few X-ray views',
    license='Apache-2.0',
    python_requires='>=3.11,<3.12',
    # requirements/lock.txt names the versions that were tested together.
    # OpenCV is mmengine's to ask for: with or without a window system.
    install_requires=[
        'diffdrr>=0.6.1,<0.7',
        'h5py>=3.10,<4',
        'highdicom>=0.28,<0.29',
        'joblib>=1.4,<2',
        'matplotlib>=3.8,<4',
        'mmcv>=2.1,<2.2',
        'mmdet>=3.3,<3.4',
        'mmdet3d>=1.4,<1.5',
        'mmengine>=0.10.7,<0.11',
        'nanodrr>=0.1.7,<0.2',
        'nibabel>=5,<6',
        'numpy>=1.26,<2',
        'plotly>=6,<8',
        'pycocotools>=2.0.8,<3',
        'pydicom>=3,<4',
        'pylidc>=0.2.3,<0.3',
        'scipy>=1.11,<2',
        'setuptools<81',  # pylidc imports its pkg_resources
        'SimpleITK>=2.4,<3',
        'tensorboard>=2.16,<3',
        'terminaltables>=3.1,<4',
        'tifffile>=2024.1',
        'torch>=2.6,<3',
        'torchio>=1.2,<2',
        'tqdm>=4.66,<5',
    ],
    extras_require={
        'cluster': ['distributed'],
        'dev': ['codespell', 'hypothesis', 'jsonschema', 'mypy',
                'playwright', 'pytest', 'pytest-cov', 'pytest-xdist',
                'ruff'],
        'deploy': ['onnx', 'onnxruntime', 'onnxscript'],
        'serve': ['fastapi', 'pillow', 'uvicorn'],
        'docs': ['mkdocs-material', 'mkdocstrings[python]'],
    },
    # The folders keep their short names in a checkout; installed, `tools`
    # and `configs` would be everybody's.
    packages=find_namespace_packages(
        include=['projects.*', 'data_converters*']) + [
            'mv2d_xray_configs', 'mv2d_xray_tools'],
    package_dir={'mv2d_xray_configs': 'configs', 'mv2d_xray_tools': 'tools'},
    package_data={
        'mv2d_xray_configs': ['**/*.py'],
        'projects.core': ['*.json'],
        'projects.core.report': ['report.html'],
        'projects.core.serve': ['page.html']},
    entry_points=dict(console_scripts=[
        f'mv2d-xray-{name} = {module}:main'
        for name, module in COMMANDS.items()]),
)
