"use strict";
// What both pages share: elements, requests to the gateway that served them, the key, the colours.
const $ = (id) => document.getElementById(id);
const access = { key: sessionStorage.getItem("key") || "" };

function el(tag, props = {}, ...inside) {
  const e = document.createElement(tag);
  for (const [n, v] of Object.entries(props)) n in e && n !== "role" ? (e[n] = v) : e.setAttribute(n, v);
  e.append(...inside);
  return e;
}
function warn(text) { if ($("alert").textContent !== text) $("alert").textContent = text; $("alert").hidden = !text; }
async function call(method, path, body) {
  const headers = access.key ? { "X-API-Key": access.key } : {};
  if (body) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) }).catch(() => { throw new Error("The gateway does not answer."); });
  const found = await answer.json();
  if (answer.ok) return found;
  if (answer.status === 401) $("key-box").open = true;
  throw new Error(answer.status === 401 ? "This needs the API key: see the box “API key”." : found.error);
}
function keep(key) { access.key = key; sessionStorage.setItem("key", key); }
function onKey(then) {
  $("key-form").addEventListener("submit", (e) => { e.preventDefault(); keep($("key").value.trim()); $("key").value = ""; $("key-box").open = false; then(); });
}
const given = new URLSearchParams(location.hash.slice(1)).get("key");
if (given) { keep(given); history.replaceState(null, "", location.pathname); }
if (localStorage.getItem("theme")) document.documentElement.dataset.theme = localStorage.getItem("theme");
$("theme").addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches, now = document.documentElement.dataset.theme || (dark ? "dark" : "light"), next = now === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  localStorage.setItem("theme", next);
  $("theme").ariaLabel = `Colours: ${next}`;
});
