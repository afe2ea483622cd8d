// SPDX-License-Identifier: Apache-2.0
// The npm package openai against a bridge: openai-package.mjs NODE_MODULES BASE-URL MODEL
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [folder, baseURL, model] = process.argv.slice(2);
const found = createRequire(pathToFileURL(folder + "/x.js")).resolve("openai");
const { default: OpenAI } = (await import(pathToFileURL(found))).default;
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const ask = { model, messages: [{ role: "user", content: "How do I list files?" }], temperature: 0, max_tokens: 8 };

const whole = await client.chat.completions.create(ask);
assert.equal(whole.choices[0].finish_reason, "length");
assert.equal(whole.usage.completion_tokens, 8);

let text = "";
for await (const part of await client.chat.completions.create({ ...ask, stream: true }))
  text += part.choices[0]?.delta?.content ?? "";
assert.equal(text, whole.choices[0].message.content);

const forever = await client.chat.completions.create({ ...ask, stream: true, max_tokens: 100000,
  logit_bias: { 1: -100, 50: -100, 106: -100 } });
let n = 0;
for await (const part of forever) if (++n === 3) forever.controller.abort();
assert.ok(n >= 3 && n < 1000, `${n} pieces`);

await assert.rejects(client.chat.completions.create({ ...ask, model: "gpt-9" }),
  e => e instanceof OpenAI.NotFoundError && e.code === "model_not_found" && e.param === "model");
await assert.rejects(client.chat.completions.create({ ...ask, temperature: 9 }), e => e instanceof OpenAI.BadRequestError);
assert.deepEqual((await client.models.list()).data.map(m => m.id), [model]);
assert.equal((await client.completions.create({ model, prompt: "once", max_tokens: 2 })).usage.completion_tokens, 2);
console.log("openai package: ok");
