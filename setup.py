"""Installs the plugin so that ``custom_imports`` finds it from any folder."""

from setuptools import find_namespace_packages, setup

setup(
    name='mv2d-xray',
    version='0.1.0',
    description='3D boxes of small indications from a few X-ray views',
    license='Apache-2.0',
    python_requires='>=3.11,<3.12',
    packages=find_namespace_packages(
        include=['projects.*', 'data_converters*']),
    package_data={
        'projects.core': ['rig.schema.json'],
        'projects.core.report': ['report.html']},
)
