#!/usr/bin/env python3
"""Makes tests/umt5/ids.json: the ids that transformers gives to 20 prompts with the published
tokenizer, after the cleaning of the reference (HuggingfaceTokenizer with clean='whitespace',
wan/modules/tokenizers.py).

  umt5_ids.py FOLDER OUT     FOLDER holds the published tokenizer.json and its three other files

Needs transformers, sentencepiece and ftfy. The versions that made the file are in it.
"""
import html
import json
import re
import sys

import ftfy
import tokenizers
import transformers

LENGTH = 512
PROMPTS = [
    "A woman speaks to the camera",
    "A young woman with long hair looks into the camera, and speaks in a calm, friendly voice.",
    "",
    " \t\u3000 ",
    "two  spaces,   three    and     more \t tabs\nand\n\nlines ",
    "一个女人坐在房间里，对着镜头微笑着说话。",
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量",
    "一位 young 女士 speaks 中文 and English，镜头 slowly moves.",
    "日本語のテキストと한국어 텍스트 together",
    "Мужчина говорит в микрофон; ὁ ἄνθρωπος λέγει",
    "رجل يتحدث إلى الكاميرا, איש מדבר",
    "👩🏽\u200d🚀 speaks 😀 with a smile 🎬🎤",
    "𝔰𝔩𝔬𝔴𝔩𝔶 she turns, 𠮷野家 in the back",
    "</s> in the text, <pad>, <unk>, <s> and <extra_id_0>",
    "<extra_id_299><extra_id_1> next to each other",
    "25 fps, f/1.8, 50mm, 4K (3840x2160), $1,234.56 & 100% real - isn't it?",
    "Café naïve façade, Straße, Ærøskøbing, Łódź, İstanbul",
    "“Curly quotes”, ‘single’ … an ellipsis – and a dash — ½",
    "the camera slowly moves closer, " * 120,
    "镜头慢慢靠近，" * 200,
]


def cleaned(text):
    text = ftfy.fix_text(text)
    text = html.unescape(html.unescape(text)).strip()
    return re.sub(r"\s+", " ", text).strip()


def main():
    folder, out = sys.argv[1:]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    cases = []
    for prompt in PROMPTS:
        ids = tokenizer(
            [cleaned(prompt)], add_special_tokens=True, truncation=True, max_length=LENGTH
        )["input_ids"][0]
        cases.append({"prompt": prompt, "ids": ids})
    versions = {m.__name__: m.__version__ for m in (transformers, tokenizers, ftfy)}
    lines = ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases)
    with open(out, "w", encoding="utf-8") as f:
        f.write(f'{{"versions": {json.dumps(versions)}, "cases": [\n{lines}\n]}}\n')
    print(f"umt5_ids: {len(cases)} prompts, {sum(len(c['ids']) for c in cases)} ids")


if __name__ == "__main__":
    main()
