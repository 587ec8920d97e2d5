import pytest

from stablediag.store import _db


@pytest.fixture(params=["wal", "delete"])
def mode(request, monkeypatch):
    monkeypatch.setattr(_db, "journal_mode", lambda path: request.param)
    return request.param
