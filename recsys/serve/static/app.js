"use strict";
// The shop window: asks the gateway that served it, and nobody else. A click is an event; the page is then asked for again and compared.
const STAGES = { user_features: "visitor", query_tower: "query tower", retrieve: "retrieve", seen_filter: "seen filter", item_features: "item features", dlrm: "rank", rerank: "rerank" };
const state = { page: null, known: null, category: "", shown: 0, drift: 0, seed: 1, asked: 0, clicked: new Map(), waiting: null, servers: "", unanswered: false, fresh: "visitor-" + Math.random().toString(36).slice(2, 8) };

const money = (x) => (x == null ? "" : x.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 }));
const name = (x) => x.title || x.item_id;
const picture = (x) => el("img", { src: x.image, alt: "" });
function cardPicture(x) {  // the stored picture lies behind the one for cards until that has come
  const image = el("img", { src: `${x.image}?size=large`, alt: "" });
  image.style.backgroundImage = `url("${x.image}")`;
  return image;
}
const say = (text) => { $("said").textContent = text; };
function tell(text) { $("toast").textContent = text; $("toast").hidden = !text; clearTimeout(state.told); state.told = setTimeout(() => tell(""), text ? 9000 : 1e9); }

// ---- the visitor and the request
const fieldControls = document.querySelectorAll("[data-field]");  // numbers of a request: a new one needs no code here
const visitor = () => ($("user").value === "new" ? state.fresh : $("user").value);
function moment() {  // seconds by the run's clock; an hour means the next time that it strikes
  const now = Math.floor(Date.now() / 1000 + state.drift) + 1, hour = $("hour").value;
  if (hour === "") return now;
  const at = now - (now % 86400) + 3600 * hour;
  return at < now ? at + 86400 : at;
}
function request() {
  const drawn = document.querySelector("[name=order]:checked").value === "sample";
  const fields = { user_id: visitor(), device_type: $("device").value, timestamp: moment(), seed: state.seed };
  for (const control of fieldControls) fields[control.dataset.field] = +control.value;
  if (!drawn) fields.temperature = 0;
  return { ...fields, rules: rules() };
}
function rules() {  // the one rule that the controls make, for a category
  const category = $("rule-category").value, effect = $("rule-effect").value, factor = +$("rule-factor").value;
  if (!category) return [];
  if (effect === "pin") return [{ category, place: +$("rule-place").value }];
  return [{ category, factor: effect === "boost" ? factor : 1 / factor }];
}
function showNothing() { $("cards").replaceChildren(); $("cards").ariaBusy = "false"; $("page-note").textContent = "There is no page."; }
async function ask() {
  const mine = ++state.asked, began = performance.now();
  $("cards").ariaBusy = "true";
  try {
    const page = await call("POST", "/v1/recommendations", request());
    if (mine !== state.asked) return null;
    state.unanswered = false;
    page.browser_ms = performance.now() - began;
    state.page = page;
    showPage(page);
    return page;
  } catch (e) { if (mine === state.asked) { state.unanswered = true; warn(e.message); if (!state.page) showNothing(); } return null; } finally { if (mine === state.asked) $("cards").ariaBusy = "false"; }
}
// The steps that failed; the other fallbacks are limits, which stay when everything is up.
const failures = (page) => page.fallbacks.filter((f) => !["seen_items_shown", "seen_filter_full"].includes(f.code));
const serverOf = (stage) => (["user_features", "popularity", "seen_filter"].includes(stage) ? "valkey" : "triton");
// Is the shown page worse than the servers are now? What failed is back, or was only slow.
const spoiled = (ready) => state.unanswered || (state.page && failures(state.page).some((f) => ready[serverOf(f.stage)]));
function showPage(page) {
  const who = { known: "a known visitor", new: "a new visitor", anonymous: "an anonymous visitor", unknown: "a visitor of whom nothing is known now" }[page.user];
  const gone = new Set(failures(page).map((f) => f.stage));
  if (gone.has("triton")) warn("The recommender does not answer: these are popular items. " + page.fallbacks[0].reason);
  else if (gone.has("user_features") || gone.has("seen_filter")) warn("Valkey does not answer: history and seen items are not known now, so this page is the one of an anonymous visitor.");
  else warn(page.fallbacks.map((f) => `${f.stage}: ${f.fallback} (${f.reason})`).join("; "));
  $("page-note").textContent = `${page.items.length} items for ${who}, ` + (page.source === "popularity" ? "by popularity" : "ranked by how likely each one is chosen next") + page.notes.map((note) => `. ${note}`).join("");
  $("latency").textContent = `${page.gateway_ms.toFixed(1)} ms`;
  $("latency").title = `${page.gateway_ms.toFixed(1)} ms in the gateway, ${page.browser_ms.toFixed(0)} ms until the browser had it`;
  $("cards").replaceChildren(...page.items.map((x) => card(x, true)));
  $("bundle").textContent = page.bundle_version;
  showTime(page);
  say(`${page.items.length} items: ${page.items.slice(0, 3).map(name).join(", ")}`);
}
// A score in words, by the calibrated probability that this visitor chooses the item next; of a hundred shown items about four are chosen.
const MATCHES = [[0.1, "strong match", "strong"], [0.04, "good match", "good"], [0.015, "possible match", "possible"], [0, "long shot", "far"]];
function match(x) {
  if (x.probability == null) return { word: "", kind: "", number: `score ${x.score.toFixed(2)}` };
  const [, word, kind] = MATCHES.find(([least]) => x.probability >= least);
  return { word, kind, number: `${(100 * x.probability).toFixed(1)} % likely to be this visitor's next choice` };
}
function sources(x) {
  return el("ul", { className: "sources", ariaLabel: "Found by" }, ...x.sources.map((s) => el("li", { title: `place ${s.rank} in the list of ${s.source}, score ${s.score.toFixed(2)}` }, `${s.source} #${s.rank}`)));
}
function card(x, placed) {
  const { word, kind, number } = placed ? match(x) : {};
  const group = [x.category, x.subcategory].filter(Boolean).join(" · ");
  const text = el("span", { className: "text" }, el("b", {}, name(x)), " ", el("small", {}, group), " ", el("span", { className: "price" }, money(x.price)));
  if (placed && !x.rank) text.append(el("small", {}, x.reason));
  if (placed) text.append(el("span", { className: "hidden" }, ` ${word ? word + ", " : ""}${number}${x.rank ? ", " + x.reason : ""}`));
  const pick = el("button", { type: "button", className: "pick" }, cardPicture(x), text);
  pick.addEventListener("click", () => look(x));
  const why = el("button", { type: "button", ariaLabel: `${placed ? "Why?" : "Why not?"} ${name(x)}` }, placed ? "Why?" : "Why not?");
  why.addEventListener("click", () => explain(x, why));
  const judged = el("span", { className: `match ${kind || ""}`, title: number || "" }, placed ? word || number : "");
  const card = el("li", { className: "card" }, pick, ...(placed && x.sources.length ? [sources(x)] : []), el("div", { className: "foot" }, judged, why));
  card.dataset.item = x.item_id;
  return card;
}
function showTime(page) {
  const parts = Object.entries(page.stage_ms).map(([n, ms]) => [STAGES[n] || n, ms]), inside = parts.reduce((s, [, ms]) => s + ms, 0);
  parts.push(["gateway and hops", Math.max(0, page.gateway_ms - inside)]);
  const all = parts.reduce((s, [, ms]) => s + ms, 0);
  $("bar").replaceChildren(...parts.map(([n, ms], i) => { const b = el("i", { className: "c" + (parts.length === 1 ? 7 : i), title: `${n}: ${ms.toFixed(2)} ms` }); b.style.flex = ms; return b; }));
  $("bar").ariaLabel = `${all.toFixed(1)} milliseconds: ` + parts.map(([n, ms]) => `${n} ${ms.toFixed(2)}`).join(", ");
  $("legend").replaceChildren(...parts.map(([n, ms], i) => el("li", {}, el("i", { className: "c" + (parts.length === 1 ? 7 : i) }), `${n} `, el("b", {}, `${ms.toFixed(2)} ms`))));
}

// ---- what is known of the visitor
async function loadVisitor() {
  const user = visitor();
  let known = null, why = "";
  if (user && access.key) try { known = await call("GET", "/v1/users/" + encodeURIComponent(user)); } catch (e) { why = e.message; }
  if (user !== visitor()) return state.known;
  state.known = known;
  $("known").textContent = !user ? "Nothing: anonymous visitors leave no trace." : !access.key ? "A history is shown with the API key." : !known ? `Not to be read now: ${why}` : known.known ? "Training knew this visitor." : known.history.length ? "New since training; known from clicks." : "New: nothing yet. Click on something.";
  $("top").textContent = known?.top_category || "–";
  $("history").replaceChildren(...(known?.history || []).slice(0, 20).map((x) => el("li", { title: name(x) }, el("img", { src: x.image, alt: name(x) }))));
  $("reset").disabled = !user || !access.key;
  return known;
}
async function refresh() { await Promise.all([ask(), loadVisitor()]); }

// ---- a click, and what it changed
async function look(item) {
  const user = visitor(), before = state.page, known = state.known;
  try { await call("POST", "/v1/events", { events: [{ item_id: item.item_id, user_id: user, event_type: state.event, device_type: $("device").value, request_id: before?.items.some((x) => x.item_id === item.item_id) ? before.request_id : "" }] }); }
  catch (e) { tell(`Your click was not recorded: ${e.message}`); return; }
  if (!user) { tell(`You looked at ${name(item)}, which counts for its popularity. Anonymous visitors leave no trace: choose a visitor to see the page change.`); return; }
  state.clicked.set(user, (state.clicked.get(user) || new Set()).add(item.item_id));
  let now = await loadVisitor();
  for (let i = 0; i < 15 && !knows(now, item); i++) { await new Promise((r) => setTimeout(r, 100)); now = await loadVisitor(); }  // the worker is at it
  state.waiting = { item, before, known, user };
  await changed(now);
}
const knows = (visitor, item) => visitor?.history[0]?.item_id === item.item_id;
async function changed(now) {  // ask again and compare; `watch` comes back while the worker has not read the click
  const { item, before, known, user } = state.waiting, after = await ask();
  if (after && before && user === visitor()) compare(item, before, after, known, now);
  if ((knows(now, item) && after && !failures(after).length) || user !== visitor()) state.waiting = null;
}
function compare(item, before, after, known, now) {
  const place = (page) => new Map(page.items.map((x, i) => [x.item_id, i]));
  const a = place(before), b = place(after), seen = state.clicked.get(visitor());
  const line = (x, kind, text) => el("li", { className: kind }, picture(x), el("span", { title: name(x) }, name(x)), el("em", {}, text));
  $("before").replaceChildren(...before.items.map((x) => b.has(x.item_id) ? line(x, "", "") : seen.has(x.item_id) ? line(x, "gone", "seen, hidden") : line(x, "gone", "no longer here")));
  $("after").replaceChildren(...after.items.map((x, i) => { const d = a.has(x.item_id) ? a.get(x.item_id) - i : null; return d === null ? line(x, "new", "new") : d > 0 ? line(x, "up", `▲ ${d}`) : d < 0 ? line(x, "down", `▼ ${-d}`) : line(x, "", "="); }));
  const gone = before.items.filter((x) => !b.has(x.item_id)), fresh = after.items.filter((x) => !a.has(x.item_id)), moved = after.items.filter((x, i) => a.has(x.item_id) && a.get(x.item_id) !== i);
  const facts = [`You looked at ${name(item)}` + (b.has(item.item_id) ? "." : "; it is hidden from your pages for now.")];
  facts.push(known?.top_category !== now?.top_category ? `Top category: ${known?.top_category || "unknown"} became ${now?.top_category || "unknown"}.` : `Top category stays ${now?.top_category || "unknown"}.`);
  if (!knows(now, item)) facts.push("The worker has not read the click yet: history and preference follow.");
  facts.push(`${gone.length} left the page, ${fresh.length} came, ${moved.length} moved.`);
  $("facts").replaceChildren(...facts.map((f) => el("li", {}, f)));
  $("changed").hidden = false;
  $("changed-title").focus({ preventScroll: true });
  $("changed").scrollIntoView({ block: "start" });
  say(facts.join(" "));
}
async function forget() {
  const user = visitor();
  try { const done = await call("DELETE", "/v1/users/" + encodeURIComponent(user)); state.clicked.delete(user); state.waiting = null; $("changed").hidden = true; await refresh(); say(`${user} is forgotten, ${done.erased} keys erased.`); } catch (e) { tell(`Nobody was forgotten: ${e.message}`); }
}

// ---- why this item
async function explain(item, button) {
  $("why-title").textContent = `Why ${name(item)}?`;
  $("why-body").replaceChildren(el("p", {}, "Asking…"));
  $("why").showModal();
  const r = request(), query = new URLSearchParams({ item_id: item.item_id });
  for (const [n, v] of Object.entries(r)) if (v !== "" && typeof v !== "object") query.set(n, v);
  try { showWhy(await call("GET", "/v1/explanations?" + query), r.k, item); } catch (e) { $("why-body").replaceChildren(el("p", {}, e.message)); }
  $("why").addEventListener("close", () => button.focus(), { once: true });
}
function showWhy(w, k, item) {
  const title = (id) => name([item, ...(state.page?.items || [])].find((x) => x.item_id === id) || { item_id: id });
  const step = (title, ...inside) => el("section", {}, el("h3", {}, title), ...inside), text = (t) => el("p", {}, t), number = (x) => (x == null ? "–" : (+x).toFixed(2));
  const { retrieved, filtered, ranked, reranked } = w, groups = Object.entries(ranked.groups || {}).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])), most = Math.max(1e-9, ...groups.map(([, v]) => Math.abs(v)));
  const shares = el("ul", { className: "shares" }, ...groups.map(([n, v]) => { const i = el("i", { className: v < 0 ? "less" : "" }); i.style.width = `${(50 * Math.abs(v)) / most}%`; i.style[v < 0 ? "right" : "left"] = "50%"; return el("li", {}, w.names[n] || n, el("span", { className: "track" }, i), el("b", {}, (v > 0 ? "+" : "") + v.toFixed(2))); }));
  $("why-body").replaceChildren(el("p", { className: "words" }, w.words.replaceAll(w.item_id, title(w.item_id)).replaceAll(ranked.item_at_k, title(ranked.item_at_k))),
    step("1. Found?", text(retrieved.retrieved ? `Yes: no. ${retrieved.rank} by the two-tower, score ${number(retrieved.score)} where ${number(retrieved.cut)} was enough.` : `No: no. ${retrieved.rank ?? "?"} by the two-tower, score ${number(retrieved.score)} where ${number(retrieved.cut)} would have been enough.`)),
    step("2. Left out?", text(filtered.by ? `Yes: ${String(filtered.by).replaceAll("_", " ")}.` : "No: neither seen lately, nor excluded, nor out of stock.")),
    step("3. Ranked", text(ranked.rank == null ? "It was not ranked." : `No. ${ranked.rank}, logit ${number(ranked.logit)}; ${number(Math.abs(ranked.difference))} ${ranked.difference < 0 ? "below" : "above"} ${title(ranked.item_at_k)} at place ${k}. What makes the difference:`), shares),
    step("4. Shown", text(reranked.low === reranked.high ? (reranked.low ? "On this page." : "Not on this page.") : `On ${(100 * reranked.probability).toFixed(0)} % of pages like this one (${(100 * reranked.low).toFixed(0)} to ${(100 * reranked.high).toFixed(0)} %).`)));
}

// ---- the catalogue
async function browse(more = false) {
  const query = new URLSearchParams({ category: state.category, text: $("text").value, limit: 12, offset: more ? state.shown : 0 });
  try {
    const found = await call("GET", "/v1/items?" + query);
    if (!$("categories").childElementCount) $("categories").replaceChildren(...[{ name: "", count: found.total }, ...found.categories].map((c) => { const b = el("button", { type: "button", ariaPressed: String(c.name === state.category) }, c.name || "everything"); b.dataset.category = c.name; return b; }));
    if ($("rule-category").childElementCount === 1) $("rule-category").append(...found.categories.map((c) => el("option", { value: c.name }, c.name)));
    if (!$("add-category").childElementCount) $("add-category").replaceChildren(...found.categories.map((c) => el("option", { value: c.name }, c.name)));
    $("items")[more ? "append" : "replaceChildren"](...found.items.map((x) => card(x, false)));
    state.shown = $("items").childElementCount;
    $("total").textContent = `${state.shown} of ${found.total.toLocaleString("en")} items, the popular first`;
    $("more").hidden = state.shown >= found.total;
  } catch (e) { warn(e.message); }
}

// ---- a new item
async function add() {
  const body = { title: $("add-title").value, description: $("add-text").value, category: $("add-category").value, subcategory: $("add-kind").value, price: +$("add-price").value };
  $("add-form").ariaBusy = "true";
  try {
    const { item } = await call("POST", "/v1/items", body);
    $("add-form").reset();
    $("add").open = false;
    state.category = "";
    for (const x of $("categories").children) x.ariaPressed = String(!x.dataset.category);
    $("text").value = item.title.slice(0, $("text").maxLength);
    await browse();
    const mine = document.querySelector(`#items [data-item="${CSS.escape(item.item_id)}"]`);
    if (mine) { mine.classList.add("mine"); mine.querySelector(".pick").focus(); }
    const query = new URLSearchParams({ item_id: item.item_id, user_id: visitor(), timestamp: moment(), k: $("k").value });
    const why = await call("GET", "/v1/explanations?" + query);
    tell(`${item.title} is in the catalogue: for this visitor no. ${why.retrieved.rank ?? "–"} by the two-tower, no. ${why.ranked.rank} by the ranker.`);
    await ask();
  } catch (e) { tell(`The item was not added: ${e.message}`); } finally { $("add-form").ariaBusy = "false"; }
}

// ---- start
async function watch() {  // tells when a server behind goes or comes back
  try {
    const r = await call("GET", "/readyz"), now = `${r.triton} ${r.valkey} ${r.bundle_version}`;
    $("servers").replaceChildren(...["triton", "valkey"].map((n) => el("span", { className: "chip" + (r[n] ? "" : " gone") }, `${n[0].toUpperCase() + n.slice(1)} ${r[n] ? "answers" : "is gone"}`)));
    if (state.servers && state.servers !== now) { state.servers = now; if (access.key && $("user").childElementCount < 4) await loadUsers(); await refresh(); }
    state.servers = now;
    if (state.waiting) { const visitor = await loadVisitor(); if (state.waiting && knows(visitor, state.waiting.item)) await changed(visitor); }
    else if (spoiled(r)) await refresh();
  } catch { $("servers").replaceChildren(el("span", { className: "chip gone" }, "The gateway is gone")); }
}
async function loadUsers() {
  const chosen = $("user").value || "";
  let users = [];
  if (access.key) try { users = (await call("GET", "/v1/users")).users; } catch (e) { warn(e.message); }
  $("user").replaceChildren(el("option", { value: "" }, "anonymous"), el("option", { value: "new" }, "new: " + state.fresh), ...users.map((u) => el("option", { value: u }, u)));
  $("user").value = chosen;
}
function shown(control) { $(control.id + "-shown").textContent = (+control.value).toFixed((control.step.split(".")[1] || "").length); }
function fieldOf(document, owner, name) {  // a field of a model, or of the query of an operation
  const model = document.components.schemas[owner];
  if (model) return model.properties[name];
  const operation = Object.values(document.paths).flatMap((path) => Object.values(path)).find((o) => o.operationId === owner);
  return operation.parameters.find((parameter) => parameter.name === name).schema;
}
async function limit() {  // gives every control the bounds of its field, which the gateway's document states
  const document_ = await call("GET", "/openapi.json");
  for (const control of document.querySelectorAll("[data-limit]")) {
    const field = fieldOf(document_, ...control.dataset.limit.split("."));
    const { minimum, maximum, maxLength } = field.anyOf ? field.anyOf.find((kind) => kind.type !== "null") : field;
    const value = control.value;
    if (maxLength !== undefined) control.maxLength = maxLength;
    if (minimum !== undefined) control.min = Math.max(minimum, control.dataset.least ?? minimum);
    if (maximum !== undefined) control.max = Math.min(maximum, control.dataset.most ?? maximum);
    control.value = value;
  }
}
async function start() {
  $("tune").open = matchMedia("(min-width: 56rem)").matches; $("tune").classList.remove("wait");
  const [options] = await Promise.all([call("GET", "/v1/options"), limit()]);
  state.drift = options.clock - Date.now() / 1000; state.event = options.event_types[0] || "view";
  $("device").replaceChildren(el("option", { value: "" }, "any"), ...options.devices.map((d) => el("option", { value: d }, d)));
  $("hour").replaceChildren(el("option", { value: "" }, "now"), ...Array.from({ length: 24 }, (_, h) => el("option", { value: h }, `${String(h).padStart(2, "0")}:00`)));
  $("key-box").open = options.writes && !access.key;
  await Promise.all([loadUsers(), watch(), browse()]);
  if ($("user").childElementCount > 2) $("user").selectedIndex = 2;
  await refresh();
  setInterval(watch, 2000);
}
for (const id of ["user", "device", "hour"]) $(id).addEventListener("change", () => { $("changed").hidden = true; refresh(); });
for (const control of document.querySelectorAll("#tune input[type=range]")) { control.addEventListener("input", () => shown(control)); control.addEventListener("change", ask); shown(control); }
$("rule-category").addEventListener("change", ask);
$("rule-effect").addEventListener("change", () => { const pins = $("rule-effect").value === "pin"; $("rule-place").disabled = !pins; $("rule-factor").disabled = pins; ask(); });
for (const r of document.getElementsByName("order")) r.addEventListener("change", () => { $("temperature").disabled = r.value !== "sample"; ask(); });
$("ask").addEventListener("submit", (e) => { e.preventDefault(); state.seed += 1; refresh(); });
$("reset").addEventListener("click", forget);
$("changed-close").addEventListener("click", () => { $("changed").hidden = true; $("page").focus(); });
$("search").addEventListener("submit", (e) => e.preventDefault());
$("text").addEventListener("input", () => { clearTimeout(state.typing); state.typing = setTimeout(browse, 200); });
$("add-form").addEventListener("submit", (e) => { e.preventDefault(); add(); });
$("more").addEventListener("click", () => browse(true));
$("categories").addEventListener("click", (e) => { const b = e.target.closest("button"); if (!b) return; state.category = b.dataset.category; for (const x of $("categories").children) x.ariaPressed = String(x === b); browse(); });
onKey(async () => { warn(""); await loadUsers(); refresh(); });
start().catch((e) => { warn(e.message); showNothing(); });
