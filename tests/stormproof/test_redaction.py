from pathlib import Path

import pytest

from stormproof.redaction import redact_output
from stormproof.replay.output_text import MAX_CHARACTERS, last_lines

ENVIRONMENT = {
    "OPENAI_API_KEY": "hunter2-and-more",
    "HF_TOKEN": "hunter2-token",
    "DB_PASSWORD_2": "hunter2",
    "TOKENIZERS_PARALLELISM": "disabled",
    "EMPTY_TOKEN": "",
    "SHORT_KEY": "a",
}
SECRETS = {
    "a value of the environment": "RuntimeError: server refused hunter2-and-more",
    "two values of the environment": "hunter2-token is not hunter2",
    "a bearer token": "401: Authorization: Bearer abc-hunter2.def",
    "a URL": "no answer from https://me:hunter2@example.org/a",
    "an option": "python train.py --api-key=hunter2",
    "a dict": "Config({'password': 'hunter2', 'lr': 0.1})",
    "JSON": '{"aws_secret_access_key": "ab/hunter2+x", "lr": 0.1}',
    "an assignment": "client_secret = 'a hunter2'",
    "a token with a known prefix": "invalid ghp_hunter2AAAAAAAAAAAAAAAA",
}
PLAIN = [
    "ValueError: batch 3 of 10: loss is nan, tokens=512, key: a",
    "KeyError: 'token'",
    "parallelism is disabled, see https://example.org/a@b",
    "step 10: {'loss': 0.5, 'name': 'run'}",
]


@pytest.mark.parametrize("text", SECRETS.values(), ids=SECRETS.keys())
def test_secrets_in_output_are_replaced(text: str):
    assert "hunter2" not in redact_output(text, ENVIRONMENT)
    assert "secret-" in redact_output(text, ENVIRONMENT)


@pytest.mark.parametrize("text", PLAIN)
def test_output_without_secrets_is_unchanged(text: str):
    assert redact_output(text, ENVIRONMENT) == text


@pytest.mark.parametrize("separator", [" ", "\x1f"])
def test_the_value_after_an_option_for_a_secret_is_replaced(separator: str):
    words = ["python", "train.py", "--lr", "0.1", "--hf-token", "hunter2", "password=hunter2", "--fast"]
    redacted = redact_output(separator.join(words), {}).split(separator)
    assert redacted[:5] == words[:5]
    assert redacted[7:] == ["--fast"]
    assert "hunter2" not in " ".join(redacted)


def test_a_secret_at_the_end_of_a_long_line_is_replaced_before_the_line_is_cut(tmp_path: Path):
    line = "x" * (MAX_CHARACTERS - 13) + " token=hunter2-long"
    (tmp_path / "output.txt").write_text(f"first\n{line}\n")
    assert "hunter" not in last_lines(tmp_path / "output.txt")
