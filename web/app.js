// Quire's chat page. Plain DOM, no dependencies. Conversations live in localStorage; text from the model only ever
// becomes text nodes, so nothing that a model says can run.
"use strict";

const $ = (id) => document.getElementById(id);
const STORE = "quire.chats.v1";
const SETTINGS = "quire.settings.v1";

// One row a sampling setting: request field, label, and the input's bounds.
const NUMBERS = [
  { key: "temperature", label: "Temperature", min: 0, max: 100, step: "0.05" },
  { key: "top_p", label: "Top p", min: 0.01, max: 1, step: "0.01" },
  { key: "top_k", label: "Top k (0: off)", min: 0, max: 1000000, step: "1", whole: true },
  { key: "min_p", label: "Min p", min: 0, max: 1, step: "0.01" },
  { key: "repetition_penalty", label: "Repetition penalty", min: 0.1, max: 10, step: "0.05" },
  { key: "presence_penalty", label: "Presence penalty", min: -2, max: 2, step: "0.1" },
  { key: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, step: "0.1" },
  { key: "max_tokens", label: "Most tokens", min: 1, max: 2147483647, step: "1", whole: true },
  { key: "seed", label: "Seed", min: 0, max: Number.MAX_SAFE_INTEGER, step: "1", whole: true },
];
const SUGGESTIONS = ["Explain how rainbows form.", "Write a haiku about autumn.", "Give me three ideas for a rainy day.", "What is the capital of France?"];

let chats = [];
let current = null; // an element of chats
let settings = { system: "", stop: "", theme: "" };
let running = null; // {abort, chat} while a reply comes

/* ---- storage ---- */

function read(key, fallback) {
  try {
    const value = JSON.parse(localStorage.getItem(key));
    return value === null || typeof value !== "object" ? fallback : value;
  } catch {
    return fallback;
  }
}

function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch {
    say("The browser's storage is full: this conversation is not kept.");
  }
}

function saveChats() {
  write(STORE, chats.filter((chat) => chat.messages.length > 0).slice(0, 200));
}

/* ---- small helpers ---- */

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function button(text, label, action) {
  const node = make("button", "", text);
  node.type = "button";
  if (label) node.setAttribute("aria-label", label);
  node.addEventListener("click", action);
  return node;
}

function say(text) {
  $("status").textContent = text;
}

async function copy(text, node) {
  const before = node.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  node.textContent = "Copied";
  setTimeout(() => (node.textContent = before), 1200);
}

/* ---- Markdown: the part that models use ---- */

function appendInline(parent, text) {
  const pattern = /(`+)([^`]+?)\1|\*\*([^*\n]+?)\*\*|\*([^*\s][^*\n]*?)\*/g;
  let at = 0;
  for (const match of text.matchAll(pattern)) {
    parent.append(text.slice(at, match.index));
    if (match[1]) parent.append(make("code", "", match[2]));
    else if (match[3]) parent.append(make("strong", "", match[3]));
    else parent.append(make("em", "", match[4]));
    at = match.index + match[0].length;
  }
  parent.append(text.slice(at));
}

function codeBlock(language, code) {
  const box = make("div", "code");
  const bar = make("div", "bar");
  const copyButton = button("Copy", "Copy this code", () => copy(code, copyButton));
  bar.append(make("span", "", language || "code"), copyButton);
  const pre = make("pre");
  pre.tabIndex = 0;
  pre.append(make("code", "", code));
  box.append(bar, pre);
  return box;
}

function appendBlocks(parent, text) {
  let list = null, paragraph = null;
  for (const line of text.split("\n")) {
    const bullet = /^\s*[-*+]\s+(.*)$/.exec(line), number = /^\s*(\d+)[.)]\s+(.*)$/.exec(line), head = /^#{1,6}\s+(.*)$/.exec(line);
    if (bullet || number) {
      const tag = bullet ? "UL" : "OL";
      if (!list || list.tagName !== tag) {
        list = make(tag);
        if (number) list.start = Number(number[1]);
        parent.append(list);
      }
      const item = make("li");
      appendInline(item, bullet ? bullet[1] : number[2]);
      list.append(item);
      paragraph = null;
    } else if (head) {
      const node = make("h3");
      appendInline(node, head[1]);
      parent.append(node);
      list = paragraph = null;
    } else if (line.trim() === "") {
      list = paragraph = null;
    } else {
      if (!paragraph) parent.append((paragraph = make("p")));
      else paragraph.append(make("br"));
      appendInline(paragraph, line);
      list = null;
    }
  }
}

function render(parent, text) {
  parent.replaceChildren();
  let at = 0;
  const fence = /^```([^\n`]*)\n([\s\S]*?)(?:^```[ \t]*$|$(?![\s\S]))/gm;
  for (const match of text.matchAll(fence)) {
    appendBlocks(parent, text.slice(at, match.index));
    parent.append(codeBlock(match[1].trim(), match[2].replace(/\n$/, "")));
    at = match.index + match[0].length;
  }
  appendBlocks(parent, text.slice(at));
}

/* ---- the view ---- */

function rateText(stats) {
  if (!stats) return "";
  const parts = [`${stats.tokens} token${stats.tokens === 1 ? "" : "s"}`];
  if (stats.rate > 0) parts.push(`${stats.rate.toFixed(1)} tok/s`);
  if (stats.first > 0) parts.push(`first after ${stats.first < 1 ? Math.round(stats.first * 1000) + " ms" : stats.first.toFixed(2) + " s"}`);
  if (stats.finish && stats.finish !== "stop") parts.push(stats.finish);
  return parts.join(" · ");
}

function messageNode(message, index) {
  const mine = message.role === "user";
  const node = make("li", `message ${mine ? "user" : "assistant"}`);
  node.append(make("p", "who", mine ? "You" : "Model"));
  const thought = make("details", "thought");
  thought.hidden = !message.reasoning;
  thought.open = message.content === "";
  thought.append(make("summary", "", "Thought"), make("p", "", message.reasoning || ""));
  node.append(thought);
  const text = make("div", "text");
  if (mine) text.textContent = message.content;
  else render(text, message.content);
  node.append(text);
  if (message.error) node.append(make("p", "failure", message.error));
  const foot = make("div", "foot");
  if (!mine) foot.append(make("span", "rate", rateText(message.stats)));
  const copyButton = button("Copy", "Copy this message", () => copy(message.content, copyButton));
  foot.append(copyButton);
  if (mine) foot.append(button("Edit", "Edit this message and ask again", () => edit(index)));
  else if (index === current.messages.length - 1 && !(running && running.chat === current)) foot.append(button("Again", "Ask for another answer", () => again()));
  node.append(foot);
  return node;
}

function showMessages() {
  const empty = current.messages.length === 0;
  $("empty").hidden = !empty;
  $("messages").replaceChildren(...current.messages.map(messageNode));
  $("title").textContent = current.title || "New chat";
  document.title = current.title ? `${current.title} · Quire` : "Quire";
  $("log").scrollTop = $("log").scrollHeight;
}

function showChats() {
  $("conversations").replaceChildren(
    ...chats.filter((chat) => chat.messages.length > 0).map((chat) => {
      const item = make("li", chat === current ? "current" : "");
      const open = button(chat.title || "New chat", "", () => select(chat));
      open.className = "open";
      if (chat === current) open.setAttribute("aria-current", "true");
      const remove = button("✕", `Delete the conversation: ${chat.title || "New chat"}`, () => removeChat(chat));
      remove.className = "delete icon";
      item.append(open, remove);
      return item;
    }));
}

function show() {
  showChats();
  showMessages();
}

function select(chat) {
  current = chat;
  document.body.classList.remove("side-open");
  $("open-sidebar").setAttribute("aria-expanded", "false");
  $("scrim").hidden = true;
  show();
  $("prompt").focus();
}

function newChat() {
  const blank = chats.find((chat) => chat.messages.length === 0);
  if (blank) return select(blank);
  const chat = { id: `${Date.now()}-${Math.random().toString(36).slice(2)}`, title: "", messages: [] };
  chats.unshift(chat);
  select(chat);
}

function removeChat(chat) {
  if (running && running.chat === chat) running.abort.abort();
  chats = chats.filter((other) => other !== chat);
  saveChats();
  if (chat !== current) return showChats();
  if (chats.length > 0) select(chats[0]);
  else newChat();
}

function step(by) {
  const shown = chats.filter((chat) => chat.messages.length > 0 || chat === current);
  const next = shown[shown.indexOf(current) + by]; // from a new chat, down leads to the latest one
  if (next) select(next);
}

/* ---- talking to the server ---- */

function requestBody(chat) {
  const messages = chat.messages.filter((m) => m.content !== "").map((m) => ({ role: m.role, content: m.content }));
  if (settings.system) messages.unshift({ role: "system", content: settings.system });
  const body = { model: $("model").value, messages, stream: true, stream_options: { include_usage: true } };
  for (const row of NUMBERS) {
    if (typeof settings[row.key] === "number") body[row.key] = settings[row.key];
  }
  const stop = settings.stop.split("\n").filter((line) => line !== "");
  if (stop.length > 0) body.stop = stop;
  return body;
}

// Yields the data of each server-sent event.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    let end;
    while ((end = rest.indexOf("\n\n")) >= 0) {
      const line = rest.slice(0, end);
      rest = rest.slice(end + 2);
      if (line.startsWith("data: ")) yield line.slice(6);
    }
  }
}

async function failure(response) {
  const body = await response.json().catch(() => null);
  const message = body && body.error ? body.error.message : response.statusText;
  return new Error(response.status === 429 ? `The server is busy: ${message}` : `${message} (${response.status})`);
}

async function receive(chat, reply, abort, onText) {
  const began = performance.now();
  let first = 0, last = 0, chunks = 0;
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(requestBody(chat)),
    signal: abort.signal,
  });
  if (!response.ok) throw await failure(response);
  for await (const data of events(response)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    const choice = chunk.choices[0];
    const delta = (choice && choice.delta) || {};
    if (delta.content || delta.reasoning) {
      last = performance.now();
      first = first || last;
      chunks++;
      reply.content += delta.content || "";
      reply.reasoning = (reply.reasoning || "") + (delta.reasoning || "");
    }
    if (choice && choice.finish_reason) reply.stats.finish = choice.finish_reason;
    reply.stats.tokens = chunk.usage ? chunk.usage.completion_tokens : Math.max(reply.stats.tokens, chunks);
    reply.stats.first = first ? (first - began) / 1000 : 0;
    reply.stats.rate = last > first ? ((reply.stats.tokens - 1) * 1000) / (last - first) : 0;
    onText();
  }
}

function setRunning(state) {
  running = state;
  $("send").hidden = state !== null;
  $("stop").hidden = state === null;
  $("log").setAttribute("aria-busy", state !== null ? "true" : "false");
}

async function ask() {
  const chat = current;
  const abort = new AbortController();
  const reply = { role: "assistant", content: "", stats: { tokens: 0, rate: 0, first: 0, finish: "" } };
  chat.messages.push(reply);
  setRunning({ abort, chat });
  show();
  say("Waiting for the first token…");
  let drawn = false;
  const draw = () => {
    drawn = false;
    if (current !== chat) return;
    const log = $("log"), stuck = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    const text = $("messages").lastElementChild.querySelector(".text");
    const thought = $("messages").lastElementChild.querySelector(".thought");
    thought.hidden = !reply.reasoning;
    thought.lastElementChild.textContent = reply.reasoning || "";
    render(text, reply.content);
    text.classList.toggle("busy", running !== null && running.chat === chat);
    $("messages").lastElementChild.querySelector(".rate").textContent = rateText(reply.stats);
    if (stuck) log.scrollTop = log.scrollHeight;
  };
  const onText = () => {
    say(`${reply.stats.tokens} tokens${reply.stats.rate > 0 ? `, ${reply.stats.rate.toFixed(1)} a second` : ""}`);
    if (!drawn) {
      drawn = true;
      requestAnimationFrame(draw); // at most one layout a frame, however fast tokens come
    }
  };
  draw();
  try {
    await receive(chat, reply, abort, onText);
    say(rateText(reply.stats));
  } catch (error) {
    if (error.name === "AbortError") {
      reply.stats.finish = "stopped";
      say("Stopped.");
    } else {
      reply.error = error instanceof TypeError ? "The server does not answer." : error.message;
      say(reply.error);
    }
  }
  if (reply.content === "" && !reply.reasoning && !reply.error && reply.stats.finish === "stopped") chat.messages = chat.messages.filter((m) => m !== reply);
  setRunning(null);
  saveChats();
  show();
  $("prompt").focus();
}

function send() {
  const text = $("prompt").value.trim();
  if (text === "" || running) return;
  if (!current.title) current.title = text.split("\n")[0].slice(0, 60);
  current.messages.push({ role: "user", content: text });
  $("prompt").value = "";
  grow();
  ask();
}

function again() {
  if (running) return;
  while (current.messages.length > 0 && current.messages[current.messages.length - 1].role !== "user") current.messages.pop();
  ask();
}

function edit(index) {
  if (running) return;
  $("prompt").value = current.messages[index].content;
  current.messages = current.messages.slice(0, index);
  grow();
  show();
  $("prompt").focus();
}

/* ---- settings ---- */

function showSettings() {
  $("set-system").value = settings.system;
  $("set-stop").value = settings.stop;
  for (const row of NUMBERS) $(`set-${row.key}`).value = settings[row.key] ?? "";
}

function readSettings() {
  settings.system = $("set-system").value;
  settings.stop = $("set-stop").value;
  for (const row of NUMBERS) {
    const text = $(`set-${row.key}`).value, value = row.whole ? parseInt(text, 10) : parseFloat(text);
    if (text === "" || !Number.isFinite(value)) delete settings[row.key];
    else settings[row.key] = Math.min(row.max, Math.max(row.min, value));
  }
  write(SETTINGS, settings);
}

function buildSettings() {
  for (const row of NUMBERS) {
    const label = make("label", "", row.label), input = make("input");
    input.id = `set-${row.key}`;
    input.type = "number";
    for (const name of ["min", "max", "step"]) input[name] = String(row[name]);
    input.placeholder = "model's own";
    label.htmlFor = input.id;
    label.append(input);
    $("numbers").append(label);
  }
}

function openSettings() {
  showSettings();
  $("settings").showModal();
}

function applyTheme() {
  const dark = settings.theme ? settings.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").setAttribute("aria-pressed", String(dark));
  $("theme").textContent = dark ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", dark ? "Change to light colours" : "Change to dark colours");
}

/* ---- start ---- */

function grow() {
  const box = $("prompt");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
}

async function loadModels() {
  try {
    const response = await fetch("/v1/models");
    if (!response.ok) throw await failure(response);
    const list = await response.json();
    $("model").replaceChildren(...list.data.map((model) => new Option(model.id, model.id)));
  } catch (error) {
    say(error instanceof TypeError ? "The server does not answer." : error.message);
  }
}

function keys(event) {
  if (event.key === "Escape" && running && !$("settings").open) running.abort.abort();
  if (!event.altKey || event.ctrlKey || event.metaKey) return;
  const action = { n: newChat, s: openSettings, ArrowUp: () => step(-1), ArrowDown: () => step(1) }[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

function wire() {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  $("prompt").addEventListener("input", grow);
  $("stop").addEventListener("click", () => running && running.abort.abort());
  $("new-chat").addEventListener("click", newChat);
  $("open-settings").addEventListener("click", openSettings);
  $("settings").addEventListener("close", readSettings);
  $("reset-settings").addEventListener("click", () => {
    settings = { system: "", stop: "", theme: settings.theme };
    showSettings();
  });
  $("delete-all").addEventListener("click", () => {
    if (!confirm("Delete all conversations in this browser?")) return;
    if (running) running.abort.abort();
    chats = [];
    saveChats();
    $("settings").close();
    newChat();
  });
  $("theme").addEventListener("click", () => {
    settings.theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    write(SETTINGS, settings);
    applyTheme();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyTheme);
  const side = (open) => {
    document.body.classList.toggle("side-open", open);
    $("open-sidebar").setAttribute("aria-expanded", String(open));
    $("scrim").hidden = !open;
    (open ? $("new-chat") : $("open-sidebar")).focus();
  };
  $("open-sidebar").addEventListener("click", () => side(true));
  $("close-sidebar").addEventListener("click", () => side(false));
  $("scrim").addEventListener("click", () => side(false));
  document.addEventListener("keydown", keys);
  for (const text of SUGGESTIONS) {
    const item = make("li");
    item.append(button(text, "", () => {
      $("prompt").value = text;
      send();
    }));
    $("suggestions").append(item);
  }
}

function start() {
  chats = read(STORE, []);
  if (!Array.isArray(chats)) chats = [];
  chats = chats.filter((chat) => chat && Array.isArray(chat.messages));
  settings = { system: "", stop: "", theme: "", ...read(SETTINGS, {}) };
  applyTheme();
  buildSettings();
  wire();
  loadModels();
  newChat();
}

start();
