"""Imported by every Python that is started with this directory on PYTHONPATH: has it watch its control file."""

import os

from tests.support.armed import VARIABLE, install

if os.environ.get(VARIABLE):
    install()
