"""Genuine checkpoints, each made once a run."""

import make_checkpoints
import pytest


@pytest.fixture(scope="session")
def modelopt_folder(tmp_path_factory):
    return make_checkpoints.make_modelopt(tmp_path_factory.mktemp("modelopt"))


@pytest.fixture(scope="session")
def compressed_tensors_folder(tmp_path_factory):
    return make_checkpoints.make_compressed_tensors(tmp_path_factory.mktemp("compressed_tensors"))


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory):
    return make_checkpoints.make_plain(tmp_path_factory.mktemp("plain"))
