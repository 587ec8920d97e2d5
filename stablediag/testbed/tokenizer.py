"""The word-level tokenizer of the embedded testbed, an ordinary fast tokenizer of `transformers`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stablediag.testbed.tasks import capability_tasks
from stablediag.testbed.templates import CLAIM_TEMPLATES, PERSONAS, RELATIONS, TRUTH, TWO_HOP_TEMPLATES
from stablediag.testbed.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def vocabulary(world: World) -> list[str]:
    """Special tokens, then, sorted, every word that the world, its templates and the capability tasks can say."""
    texts = [*PERSONAS, *TRUTH]
    for relation in RELATIONS.values():
        texts += [template.replace("{s}", "") for template in relation.templates]
        texts += [relation.phrase, relation.table or ""]
    for template in CLAIM_TEMPLATES + TWO_HOP_TEMPLATES:
        texts.append(" ".join(word for word in template.split() if not word.startswith("{")))
    for answers in world.objects.values():
        texts += answers
    for prompt, answer in world.table_items():
        texts += [prompt, answer]
    texts += [fact.subject for fact in world.facts]
    for task in capability_tasks().values():
        texts += task.labels
        texts += [probe.prompt for probe in task.train + task.test]
    return [*SPECIAL, *sorted({word for text in texts for word in text.split()})]


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Word-level tokenizer that splits at white space and puts ``<s>`` in front.

    Leading spaces are harmless: ``tokenizer(" " + answer, add_special_tokens=False)`` continues a prompt.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(vocabulary(world))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", words["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
