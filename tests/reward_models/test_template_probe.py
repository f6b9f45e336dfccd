"""Chat templates in the style of well-known models, and what the probe says of them."""

from __future__ import annotations

import copy
import datetime

import pytest

from rm_methods.errors import UserError
from rm_methods.reward_models.template_probe import (
    RefusedConversation,
    conversation,
    fold_system,
    pin_date,
    pinned_date,
    probe_template,
    render,
)
from rm_methods.reward_models.tokenization import ChatTokenizer

USER = {"role": "user", "content": "Name a sea."}
SYSTEM = {"role": "system", "content": "Be brief."}
HEADERS = (
    "{{ bos_token }}{{ '[system]' }}{% if date_string is not defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '1 Jan 2000' %}{% endif %}"
    "{% endif %}"
    "{{ 'Today Date: ' + date_string + '\n\n' }}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}{% set messages = messages[1:] %}"
    "{% endif %}"
    "{{ eos_token }}{% for m in messages %}{{ '[' + m['role'] + ']\n\n' + m['content'] | trim + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]\n\n' }}{% endif %}"
)
DEVELOPER = (
    "{%- macro preface() -%}{{ 'Current date: ' + strftime_now('%Y-%m-%d') + '\n' }}{%- endmacro -%}"
    "{{- '<s>system' + preface() + '</s>' -}}"
    "{%- for m in messages -%}"
    "{%- if m.role == 'system' -%}{{- '<s>developer# Instructions\n' + m.content + '</s>' -}}"
    "{%- elif m.role == 'assistant' -%}{{- '<s>assistant:final:' + m.content + eos_token -}}"
    "{%- else -%}{{- '<s>user' + m.content + '</s>' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<s>assistant' -}}{%- endif -%}"
)
METADATA = (
    '{# A comment first. #}{%- set day = strftime_now("%-d %B %Y, %H:%M, week %V, %a") -%}'
    "{{- '<s>system\nToday: ' + day + '\nReasoning: /think\n' -}}"
    "{%- if messages[0].role == 'system' -%}{{- messages[0].content -}}{%- endif -%}{{- '</s>\n' -}}"
    "{%- for m in messages -%}{%- if m.role != 'system' -%}"
    "{{- '<s>' + m.role + '\n' + m.content.lstrip('\n') + eos_token + '\n' -}}"
    "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{- '<s>assistant\n' -}}{%- endif -%}"
)
TURNS_ALTERNATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}"
    "{% endif %}"
    "{{ '<turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + '</turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
THINKS = (
    "{%- set ns = namespace(last=0) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}"
    "{%- set ns.last = loop.index0 -%}{%- endif -%}"
    "{%- endfor -%}{%- for m in messages -%}{%- if m.role == 'assistant' -%}"
    "{%- set thought, answer = '', m.content -%}{%- if '</think>' in m.content -%}"
    "{%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') -%}"
    "{%- set answer = m.content.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}"
    "{%- if loop.index0 > ns.last -%}{{- '<s>assistant\n<think>\n' + thought + '\n</think>\n\n' + answer + '</s>\n' -}}"
    "{%- else -%}{{- '<s>assistant\n' + answer + '</s>\n' -}}{%- endif -%}"
    "{%- else -%}{{- '<s>' + m.role + '\n' + m.content + '</s>\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<s>assistant\n' -}}{%- endif -%}"
)
FORGETS_THOUGHTS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '[assistant]' + m.content.split('</think>')[-1] + eos_token }}"
    "{% else %}{{ '[' + m.role + ']' + m.content }}{% endif %}{% endfor %}"
)
FOLDS = (
    "{{ bos_token }}{% set system = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] + '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + (system if loop.first else '') + m['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
PARTS = (
    "{% for m in messages %}{{ m['role'] | capitalize + ':' }}{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{{ eos_token }}{% endfor %}"
)
HIDES_SYSTEM = "{% for m in messages if m.role != 'system' %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}"
FIRST_AND_LAST = "{{ messages[0].content }}|{{ messages[-1].content + eos_token }}"

DEFAULTS = {
    "adds_bos": False,
    "ends_with": "<eos>",
    "has_eos": True,
    "system_turn": "accepted",
    "several_turns": "kept",
    "consecutive_turns": "kept",
    "strips_think": False,
    "strips_earlier_think": False,
    "trims_response": False,
    "keeps_characters": True,
    "date": None,
}
DATE = "2024-07-26"


def of_text(properties):
    """The properties of a template without those of tools (test_tool_turns.py)."""
    return {name: value for name, value in properties.items() if name != "tools"}


@pytest.fixture
def with_template(tokenizer):
    def make(template):
        changed = copy.deepcopy(tokenizer.tokenizer)
        changed.chat_template = template
        return changed

    return make


@pytest.mark.parametrize(
    ("template", "facts"),
    [
        (HEADERS, {"adds_bos": True, "trims_response": True, "date": DATE}),
        (DEVELOPER, {"date": DATE}),
        (METADATA, {"ends_with": "<eos>\n", "date": DATE}),
        (
            TURNS_ALTERNATE,
            {"adds_bos": True, "ends_with": "</turn>\n", "has_eos": False, "system_turn": "refused",
             "consecutive_turns": "refused", "trims_response": True},
        ),
        (THINKS, {"ends_with": "</s>\n", "has_eos": False, "strips_earlier_think": True}),
        (FORGETS_THOUGHTS, {"adds_bos": True, "strips_think": True, "strips_earlier_think": True}),
        (FOLDS, {"adds_bos": True, "system_turn": "merged"}),
        (HIDES_SYSTEM, {"system_turn": "left out"}),
        (FIRST_AND_LAST, {"several_turns": "changed", "consecutive_turns": "changed", "strips_earlier_think": True,
                          "system_turn": "accepted"}),
    ],
    ids=[
        "headers",
        "developer",
        "metadata",
        "turns alternate",
        "thinks",
        "forgets thoughts",
        "folds",
        "hides system",
        "first and last",
    ],
)  # fmt: skip
def test_what_templates_do(with_template, template, facts):
    assert of_text(ChatTokenizer(with_template(template), 256).template) == DEFAULTS | facts


def test_the_tiny_backbones_own_template(tokenizer):
    assert of_text(tokenizer.template) == DEFAULTS | {"adds_bos": True}
    prompt = [SYSTEM, USER, {"role": "assistant", "content": "Baltic."}, {"role": "user", "content": " Another \n"}]
    assert render(tokenizer.tokenizer, conversation(prompt, "<think>Red?</think> Red.")) == (
        "<bos><system>Be brief.<eos><user>Name a sea.<eos><assistant>Baltic.<eos><user> Another \n<eos>"
        "<assistant><think>Red?</think> Red.<eos>"
    )


def test_characters_that_the_tokenizer_folds_are_noticed(with_template):
    from tokenizers import normalizers

    folding = with_template(FOLDS)
    folding.backend_tokenizer.normalizer = normalizers.Lowercase()
    facts = {"adds_bos": True, "system_turn": "merged", "keeps_characters": False}
    assert of_text(probe_template(folding)) == DEFAULTS | facts


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (PARTS, "prints the same for two different responses.*lists of parts"),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            "prints the same for two different responses",
        ),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "changes the text of a response"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}{{ range(99999) | random }}", "another text each time"),
        ("{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}", "BOS token twice"),
        (
            "{{ raise_exception('nothing is good enough') }}",
            r"refuses a conversation .*nothing is good enough\)\. Name a Jinja file",
        ),
        ("{% for m in messages %}", "refuses a conversation"),
    ],
    ids=["parts", "users only", "upper case", "random", "two BOS", "refuses all", "syntax"],
)
def test_templates_that_no_reward_can_be_read_from_are_refused(with_template, template, message):
    with pytest.raises(UserError, match=message):
        ChatTokenizer(with_template(template), 256)


class Clock(datetime.datetime):
    """A clock that can be set."""

    day = datetime.datetime(1999, 12, 31, 23, 59)

    @classmethod
    def now(cls, tz=None):
        return cls.day


@pytest.fixture
def clock(monkeypatch):
    import transformers.utils.chat_template_utils as chat_templates

    monkeypatch.setattr(chat_templates, "datetime", Clock)
    return lambda day: monkeypatch.setattr(Clock, "day", day)


@pytest.mark.parametrize("template", [HEADERS, DEVELOPER, METADATA], ids=["headers", "developer", "metadata"])
def test_no_date_changes_the_tokens_and_a_saved_tokenizer_keeps_its_date(with_template, template, clock, tmp_path):
    from transformers import AutoTokenizer

    def texts(tokenizer):
        found = []
        for day in (datetime.datetime(1999, 12, 31, 23, 59), datetime.datetime(2031, 2, 3, 4, 5)):
            clock(day)
            found.append(render(tokenizer, [SYSTEM, USER, {"role": "assistant", "content": "Baltic."}]))
        return found

    before = texts(with_template(template))
    assert before[0] != before[1]
    clock(datetime.datetime(2024, 7, 26))
    expected = render(with_template(template), [SYSTEM, USER, {"role": "assistant", "content": "Baltic."}])

    pinned = ChatTokenizer(with_template(template), 256)
    assert texts(pinned.tokenizer) == [expected, expected]
    pinned.tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert texts(saved) == [expected, expected]  # in any program that reads the folder
    assert ChatTokenizer(saved, 256).hash() == pinned.hash()
    assert saved.chat_template == pinned.tokenizer.chat_template


def test_a_date_that_a_model_was_saved_with_stays(with_template, clock, monkeypatch):
    from rm_methods.reward_models import template_probe

    tokenizer = with_template(DEVELOPER)
    monkeypatch.setattr(template_probe, "TEMPLATE_DATE", datetime.date(2020, 1, 2))
    pin_date(tokenizer)
    old = ChatTokenizer(tokenizer, 256)
    monkeypatch.undo()
    assert old.template["date"] == "2020-01-02" == pinned_date(tokenizer)
    again = ChatTokenizer(copy.deepcopy(tokenizer), 256)
    assert again.template["date"] == "2020-01-02"
    assert again.hash() == old.hash() != ChatTokenizer(with_template(DEVELOPER), 256).hash()


@pytest.mark.parametrize("start", ["\n", "  ", "\n\n  {{ 'x' }}", "{#- a -#}\n"])
def test_what_is_put_in_front_of_a_template_prints_nothing(with_template, start):
    asks = start + FOLDS + "{% if false %}{{ strftime_now('%d') }}{% endif %}"
    for template, put_in_front in ((asks, pin_date), (start + HIDES_SYSTEM, fold_system)):
        tokenizer, plain = with_template(template), with_template(template)
        put_in_front(tokenizer)
        assert tokenizer.chat_template != plain.chat_template
        messages = conversation([USER], "Baltic.")
        assert render(tokenizer, messages) == render(plain, messages)


def test_named_templates_all_get_the_date(with_template):
    tokenizer = with_template({"default": HEADERS, "tool_use": DEVELOPER})
    assert ChatTokenizer(tokenizer, 256).template["date"] == DATE
    assert all("macro strftime_now" in text for text in tokenizer.chat_template.values())


@pytest.mark.parametrize("template", [TURNS_ALTERNATE, HIDES_SYSTEM], ids=["refused", "left out"])
def test_system_text_is_folded_into_the_first_user_turn(with_template, template):
    tokenizer, plain = with_template(template), with_template(template)
    fold_system(tokenizer)
    assert probe_template(tokenizer)["system_turn"] == "merged"
    by_hand = {"role": "user", "content": "Be brief.\n\nName a sea."}
    later = [{"role": "assistant", "content": "Baltic."}, USER]
    for tail in ([], later):
        assert render(tokenizer, conversation([SYSTEM, USER, *tail], "Red.")) == render(
            plain, conversation([by_hand, *tail], "Red.")
        )
        assert render(tokenizer, conversation([USER, *tail], "Red.")) == render(
            plain, conversation([USER, *tail], "Red.")
        )
    item = ChatTokenizer(tokenizer, 256).encode([([SYSTEM, USER], ["Baltic.", "Red."])])[0]
    assert item.prompt_changed == (False, False)


def test_folding_leaves_templates_alone_that_have_a_system_turn(with_template):
    tokenizer = with_template(FOLDS)
    fold_system(tokenizer)
    assert tokenizer.chat_template == FOLDS


def test_a_refusal_names_the_turns_and_the_reason(with_template):
    with pytest.raises(RefusedConversation, match=r"turns system user assistant: System role not supported"):
        render(with_template(TURNS_ALTERNATE), conversation([SYSTEM, USER], "Baltic."))
