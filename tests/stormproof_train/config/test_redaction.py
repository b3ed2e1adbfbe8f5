from typing import Any

import pytest

from stormproof_train.config.identity import compute_identity, list_differences
from stormproof_train.config.redaction import redact_override, redact_settings, redact_text
from tests.support.cases import slow_except

SECRET: dict[str, Any] = {
    "password": "hunter2", "db_password": "hunter2", "passphrase": "hunter2", "hf_token": "hunter2", "TOKEN": "hunter2",
    "secret": "hunter2", "client_secret": "hunter2", "api_key": "hunter2", "apikey": "hunter2", "access_key": "hunter2",
    "secret_key": "hunter2", "private_key": "hunter2", "credentials": {"user": "hunter2", "more": ["hunter2"]},
    "authorization": "hunter2", "pwd": "hunter2", "X-Api-Key": "hunter2", "accessToken": "hunter2",
    "hfToken": "hunter2",
    "Proxy-Authorization": "hunter2", "auth": ["me", "hunter2"], "bearer": "hunter2", "cookie": "hunter2",
}  # fmt: skip
OPEN: dict[str, Any] = {
    "num_tokens": 512, "token_dim": 8, "max_tokens": "many", "key": "a", "keys": ["a"], "monkey": "b", "secretary": "c",
    "use_auth_token": True, "password": None, "path": "data/a@b.csv", "address": "https://example.org/a?part=1#b@c",
    "remote": "git@example.org:me/mine.git", "monitor": "val/loss", "lr": 0.1, "betas": [0.9, 0.999], "hotkey": "x",
    "pad_token": 0, "author": "me", "time": "12:30", "tokenizer": "bpe", "text": "a: b, c=d",
}  # fmt: skip
ADDRESSES = {
    "a user": "https://hunter2@example.org/a.git",
    "a user and a password": "postgresql://me:hunter2@db.example.org:5432/runs",
    "a password with a sign": "redis://:p@hunter2@db",
    "a token": "https://example.org/a.csv?part=1&token=hunter2",
    "a signed address": "https://bucket.example.org/a?X-Amz-Signature=hunter2&X-Amz-Date=1",
    "in a sentence": "no answer from https://me:hunter2@example.org/a, tried three times",
}


@pytest.mark.parametrize("key", slow_except(SECRET, list(SECRET)[::4]))
def test_what_a_key_names_a_secret_is_hidden_however_deep(key: str):
    for settings in ({key: SECRET[key]}, {"data": {key: SECRET[key]}}, {"parts": [{key: SECRET[key]}]}):
        assert "hunter2" not in repr(redact_settings(settings))


def test_digits_are_a_secret_too():
    assert redact_settings({"password": 123456})["password"].startswith("secret-")


def test_all_else_stays_as_it_is():
    assert redact_settings(OPEN) == OPEN


@pytest.mark.parametrize("address", ADDRESSES.values(), ids=ADDRESSES.keys())
def test_an_address_tells_neither_user_nor_key(address: str):
    for hidden in (redact_settings({"a": [address]})["a"][0], redact_text(address)):
        assert "hunter2" not in hidden
        assert "me:" not in hidden
        assert hidden.partition("://")[0] == address.partition("://")[0]
        assert ("example.org" in hidden) is ("example.org" in address)


@pytest.mark.parametrize("separator", ["=", ": "])
def test_only_the_secret_in_a_text_is_replaced(separator: str):
    secret = redact_settings({"password": "hunter2"})["password"]
    text = f"host=db, password{separator}hunter2, port=1"
    assert redact_text(text) == f"host=db, password{separator}{secret}, port=1"


def test_an_override_tells_none():
    overrides = ["data.password=hunter2", "++logger.api_key=hunter2", f"data.path={ADDRESSES['a token']}"]
    overrides += ["data.options={token:hunter2,part:1}", "data.dsn='host=db password=hunter2'"]
    assert all("hunter2" not in redact_override(word) for word in overrides)
    assert redact_override("optimizer.lr=0.1") == "optimizer.lr=0.1"


def test_a_secret_that_was_changed_makes_no_other_run():
    first, repeated, changed = (
        redact_settings({"data": {"password": secret}}) for secret in ("hunter2", "hunter2", "swordfish")
    )
    assert first == repeated != changed
    assert compute_identity(first) == compute_identity(changed)
    assert list_differences(first, changed) == []
