"""The drop-in template: align-anything's interface without align-anything, and its installation."""

from __future__ import annotations

import pytest
import toy

from guardrail.core.errors import UserError
from guardrail.data.prompts import TEMPLATE_FILE, encode_prompt, encode_supervised, template_module
from guardrail.training import install_template

NAMES = ("UltraChat", "BeaverTails", "Alpaca", "PureBad", "SAMSum", "GSM8K", "ListGroup")
ROW = {"prompt": "Hi.", "response": "Hello.", "id": "1"}


@pytest.mark.parametrize("name", NAMES)
def test_every_formatter_takes_the_shapes_it_is_for(name, golden_tokenizer):
    template = template_module().ChatTemplate(golden_tokenizer, name)
    rows = {
        "SAMSum": {"dialogue": "A: hi", "summary": "They greet."},
        "GSM8K": {"question": "1+1?", "answer": "2"},
        "Alpaca": {"instruction": "Say", "input": "hi", "output": "hi"},
    }
    prompt, whole, info = template.format_supervised_sample(rows.get(name, ROW))
    assert whole.startswith(prompt) and whole.endswith("</s>") and info == {}
    assert template.check_validation(rows.get(name, ROW)) and not template.check_validation({"x": 1})


@pytest.mark.parametrize("style", ["llama2_base", "llama2", "gemma_base", "gemma", "chat_template"])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_texts_tokenise_to_the_project_s_own_ids(style, adds_bos, tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPT_STYLE", style)
    tokenizer = toy.golden_tokenizer(tmp_path, adds_bos, toy.CHATML)
    template = template_module().ChatTemplate(tokenizer, "UltraChat")
    for row in toy.golden_rows()[:6]:
        prompt, whole, _ = template.format_supervised_sample(row)
        example = encode_supervised(tokenizer, style, row["messages"])
        ids = tokenizer(whole)["input_ids"]
        if style == "chat_template":  # the template prints no EOS: align-anything appends it to the text
            ids = [*ids, tokenizer.eos_token_id]
        assert ids == example.input_ids
        assert tokenizer(prompt)["input_ids"] == encode_prompt(tokenizer, style, row["messages"][:-1])
        assert template.format_prompt_only_sample(row)[0] == prompt


def test_the_rest_of_the_interface(golden_tokenizer, monkeypatch):
    template = template_module().ChatTemplate(golden_tokenizer, "UltraChat")
    other = {"prompt": "Other?", "response": "Another."}
    prompt, whole, _ = template.format_unmatched_supervised_sample(ROW, other)
    assert "Hi." in prompt and "Another." in whole and "Other?" not in whole
    assert template.format_prompt_only_sample(ROW, apply_chat_template=False)[0] == "Hi."
    assert template.format_chat_sample([{"role": "user", "content": [{"type": "text", "text": "Hi."}]}])[0] == prompt
    with pytest.raises(TypeError, match="images"):
        template.format_chat_sample([{"role": "user", "content": [{"type": "image"}]}])
    with pytest.raises(ValueError, match="available"):
        template_module().ChatTemplate(golden_tokenizer, "Nonsense")
    with pytest.raises(ValueError, match="need align-anything"):
        template_module().ChatTemplate(golden_tokenizer, "UltraChat", custom_formatter=str)
    monkeypatch.setenv("PROMPT_STYLE", "lama")
    with pytest.raises(ValueError, match="unknown PROMPT_STYLE"):
        template_module().ChatTemplate(golden_tokenizer, "UltraChat")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder that looks like the installed package, with a file that counts as upstream's."""
    (tmp_path / "configs").mkdir()
    file = tmp_path / "configs" / "template.py"
    file.write_text("original\n")
    monkeypatch.setattr(install_template, "UPSTREAM", {"3f9decc": install_template.sha256(file)})
    return tmp_path


def test_install_twice_and_restore(package):
    file = package / "configs" / "template.py"
    assert install_template.install(package)["action"] == "installed"
    assert file.read_bytes() == TEMPLATE_FILE.read_bytes()
    assert install_template.install(package)["action"] == "unchanged"
    file_of_before = file.read_text() + "# an earlier version of ours\n"
    file.write_text(file_of_before)
    (package / "configs" / install_template.NOTE).write_text(f'{{"sha256": "{install_template.sha256(file)}"}}')
    assert install_template.install(package)["action"] == "installed"  # ours of before is known
    assert install_template.restore(package)["action"] == "restored"
    assert file.read_text() == "original\n"
    assert install_template.restore(package)["action"] == "unchanged"


def test_an_unknown_file_needs_force_and_is_kept(package):
    file = package / "configs" / "template.py"
    file.write_text("somebody's own\n")
    with pytest.raises(UserError, match="--force"):
        install_template.install(package)
    assert file.read_text() == "somebody's own\n"
    install_template.install(package, force=True)
    install_template.restore(package)
    assert file.read_text() == "somebody's own\n"
